#!/usr/bin/python3
"""The nodes' stores as a person sees them: what they hold, what differs, what is repeated,
a core file that gdb opens; tags and retention; and damage on disk, found and healed."""
import json
import os
import shutil
import subprocess

from bench import BUILD, FAILED, NOT_FOUND, USAGE, Case, find, main, tracee, wait_until

SEGMENTS = "/var/lib/baton/agent/store/pages"

# Spoils bytes in the middle of every segment: pages whose checkpoint is no longer whole there.
SPOIL = """
import os, sys
folder = sys.argv[1]
for name in sorted(os.listdir(folder)):
    if not name.endswith(".pages"): continue
    path = os.path.join(folder, name)
    size = os.path.getsize(path)
    with open(path, "r+b") as f:
        for at in range(4096, size - 200, max(4096, size // 40)):
            f.seek(at); byte = f.read(1); f.seek(at); f.write(bytes([byte[0] ^ 0x20]))
"""


class Store(Case):
    nodes = 3

    def test_stat_tag_diff_analyze_export_and_gc(self):
        workload = self.start("seen", [tracee("writer")], "--interval", "10s", "--standby", "ecu2",
                              "--keep-last", "4").ready()
        first = int(find(self.bench.baton("checkpoint", "seen"), "seq"))
        tagged = self.bench.baton("tag", f"seen@{first}", "before-update", "v1")
        self.assertEqual(tagged["tags"], ["before-update", "v1"])
        self.bench.baton("tag", f"seen@{first}", "no/tag", expect=USAGE)
        self.bench.baton("tag", "seen@999999", "x", expect=NOT_FOUND)
        seqs = [int(find(self.bench.baton("checkpoint", "seen"), "seq"))]
        self.assertTrue(self.bench.baton("pin", f"seen@{seqs[0]}")["pinned"])
        seqs += [int(find(self.bench.baton("checkpoint", "seen"), "seq")) for _ in range(7)]
        held = [int(c["seq"]) for c in self.bench.baton("checkpoints", "seen")]
        self.assertEqual(held[:2], [first, seqs[0]], "what is marked stays")
        self.assertEqual(len(held), 2 + 4, "and the newest four")
        last = held[-1]
        self.assertGreaterEqual(last, seqs[-1])

        stat = {s["node"]: s for s in self.bench.baton("store", "stat")}
        self.assertEqual(set(stat), {"ecu1", "ecu2", "ecu3"})
        held = {w["name"]: w for w in stat["ecu2"]["held"]}
        self.assertGreaterEqual(held["seen"]["newest"], last)
        self.assertEqual(held["seen"]["oldest"], first)
        self.assertEqual(held["seen"]["tagged"], 2)
        self.assertGreater(stat["ecu2"]["pages"], 0)
        self.assertNotIn("seen", [w["name"] for w in stat["ecu3"]["held"]], "it is no standby of it")
        self.bench.baton("store", "stat", "--node", "nowhere", expect=NOT_FOUND)

        analysis = self.bench.baton("analyze", f"seen@{first}..{last}", "--plot", f"{self.bench.shared}/plot.svg")
        self.assertEqual([c["seq"] for c in analysis["checkpoints"]][0], first)
        self.assertEqual(analysis["sum"]["written"],
                         sum(analysis["sum"][k] for k in ("zero", "intra", "inter", "fresh")))
        self.assertEqual(analysis["sum"]["written"], sum(k["written"] for k in analysis["by_kind"]))
        self.assertEqual(analysis["sum"]["written"], sum(k["written"] for k in analysis["by_process"]))
        with open(f"{self.bench.shared}/plot.svg", encoding="ascii") as f:
            self.assertTrue(f.read().startswith("<svg"))

        diff = self.bench.baton("diff", f"seen@{seqs[0]}", f"seen@{last}", "--hex", "--pages", "20")
        changed = sum(diff["summary"][k] for k in ("pages_changed", "pages_added", "pages_removed"))
        self.assertGreater(changed, 0, "a program that writes all the time changed nothing")
        self.assertEqual(len(diff["pages"]), min(20, changed))
        self.assertTrue(any(p.get("runs") for p in diff["pages"]))
        nothing = self.bench.baton("diff", f"seen@{last}", f"seen@{last}")
        self.assertEqual(nothing["mappings"], [])

        self.check_core(last)

        self.bench.baton("store", "gc")
        left = self.bench.baton("checkpoints", "seen", "--tag", "v1")
        self.assertEqual([int(c["seq"]) for c in left], [first])
        self.bench.baton("tag", f"seen@{first}", "v1", "--remove")
        self.assertEqual(self.bench.baton("checkpoints", "seen", "--tag", "v1"), [])
        workload.verify()

    def check_core(self, seq):
        core = f"{self.bench.shared}/seen.core"
        report = self.bench.baton("export", f"seen@{seq}", "--core", core)
        self.assertEqual(report["file"], core)
        self.assertEqual(os.stat(core).st_mode & 0o777, 0o600)
        self.bench.baton("export", f"seen@{seq}", "--core", core, "--pid", "9999", expect=NOT_FOUND)
        if not shutil.which("gdb"):
            self.skipTest("gdb is missing here")
        said = subprocess.run(["gdb", "-q", "-nx", "-batch", "-ex", "info threads", "-ex", "bt", "-ex", "info proc mappings",
                               tracee("writer"), core],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
        text = said.stdout + said.stderr
        self.assertIn("main ()", text, text)
        self.assertNotIn("Cannot access memory", text, text)
        self.assertIn("libc.so", text, text)

    def test_damage_on_a_standby_is_found_named_and_healed_from_another(self):
        # What is kept at the end was taken with both standbys connected: each has all of it.
        workload = self.start("mended", [tracee("writer")], "--interval", "10s", "--standby", "ecu2,ecu3", "--keep-last", "3").ready()
        wait_until(lambda: sum(bool(c.get("connected") and c.get("last_committed")) for c in self.bench.show("mended").get("standby_copies") or []) == 2, 60, "both standbys follow")
        seqs = []
        for _ in range(4):
            seqs.append(int(find(self.bench.baton("checkpoint", "mended"), "seq")))
        def both():
            held = [c for c in self.bench.baton("checkpoints", "mended") if int(c["seq"]) == seqs[-1]]
            return held and {"ecu2", "ecu3"} <= set(held[0]["nodes"])
        wait_until(both, 60, "both standbys hold the newest")
        self.bench.exec("ecu2", "/usr/bin/python3", "-c", SPOIL, SEGMENTS)

        listed = self.bench.call("store", "verify", "--node", "ecu2", "--no-heal", "--output", "json")
        self.assertEqual(listed.returncode, FAILED, listed.stderr)
        found = json.loads(listed.stdout)[0]
        self.assertGreater(found["damaged_pages"], 0)
        self.assertEqual(found["healed_pages"], 0)
        named = {name for page in found["damaged"] for name in page["checkpoints"]}
        self.assertTrue(named and all(n.startswith("mended@") for n in named), named)

        healed = self.bench.baton("store", "verify", "--node", "ecu2")
        report = [r for r in healed if r["node"] == "ecu2"][0]
        self.assertEqual(report["healed_pages"], report["damaged_pages"])
        self.assertTrue(all(p["healed_from"] for p in report["damaged"]))
        for share in ("1/3", "2/3", "3/3"):
            again = self.bench.baton("store", "verify", "--node", "ecu2", "--subset", share)
            self.assertEqual(again[0]["damaged_pages"], 0)
        self.bench.baton("store", "verify", "--subset", "4/3", expect=USAGE)
        # What was healed is what runs: restored there, the program verifies itself.
        self.addCleanup(self.bench.call, "delete", "mended-copy", "--yes")
        self.bench.baton("restore", f"mended@{seqs[-1]}", "--to", "ecu2", "--as", "mended-copy", "--paused", timeout=60)
        workload.verify()


if __name__ == "__main__":
    main()
