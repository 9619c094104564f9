#!/usr/bin/python3
"""A standby whose disk is full, whose store holds a corrupt page, or whose last
record was torn by a power cut."""
import os

from bench import Case, find, main, tracee, wait_until

STORE = "/var/lib/baton/agent"


class Disk(Case):
    nodes = 3

    def test_full_disk_on_the_standby_is_told_and_the_program_runs_on(self):
        self.bench.vecu("kill-agent", "ecu3")
        self.bench.exec("ecu3", "/bin/sh", "-c", f"mount -t tmpfs -o size=6m,uid=64100,gid=64100,mode=700 tmpfs {STORE}")
        self.bench.vecu("start", "ecu3")
        workload = self.start("crowded", [tracee("writer"), "--mib", "64", "--pages", "200"], "--interval", "200ms", "--standby", "ecu3").ready()
        problem = wait_until(lambda: find(self.bench.show("crowded"), "problem"), 60, "show names the problem")
        self.assertTrue(problem)
        workload.verify()
        self.assertEqual(workload.place()[0], "ecu1")
        workload.delete()
        self.bench.vecu("kill", "ecu3")
        self.bench.vecu("start", "ecu3")

    def page_files(self):
        listing = self.bench.exec("ecu2", "find", STORE, "-type", "f", "-size", "+8k", "-printf", "%s %p\\n").split("\n")
        return [x.split(" ", 1)[1] for x in sorted((x for x in listing if x), key=lambda x: -int(x.split()[0]))]

    def test_corrupt_page_in_the_store_is_noticed_not_restored(self):
        workload = self.start("rotten", [tracee("writer"), "--mib", "16", "--pages", "10"], "--interval", "200ms", "--standby", "ecu2").ready()
        seq = workload.wait_commit(2)
        self.bench.vecu("kill", "ecu1")
        self.bench.vecu("kill-agent", "ecu2")
        largest = self.page_files()[0]
        # A byte in every 4 KiB of the largest file: whatever is read of it is wrong.
        script = ("import os,sys\nf=open(sys.argv[1],'r+b')\nn=os.fstat(f.fileno()).st_size\n"
                  "for at in range(8192+100,n,4096):\n  f.seek(at); b=f.read(1); f.seek(at); f.write(bytes([b[0]^0x40]))\n")
        self.bench.exec("ecu2", "/usr/bin/python3", "-c", script, largest)
        self.bench.vecu("start", "ecu2")
        try:
            done = self.bench.call("restore", f"rotten@{seq}", "--to", "ecu2", timeout=60)
            self.assertNotEqual(done.returncode, 0, "it restored corrupt memory")
            self.assertTrue(done.stderr.strip())
            self.assertEqual(workload.count(["ecu2", "ecu3"]), 0, "a half-restored program was left behind")
        finally:
            self.bench.vecu("start", "ecu1")

    def test_torn_last_record_loses_nothing_that_was_committed(self):
        workload = self.start("torn", [tracee("counter"), "10000"], "--interval", "100ms", "--standby", "ecu2", "--durability", "synced").ready()
        workload.wait_commit(5)
        self.bench.vecu("kill-agent", "ecu2")
        committed = workload.committed()
        # As a power cut in the middle of the next append leaves it: some bytes of a record at the end. (A voter whose
        # log ends like that asks the others before it votes, and one of them is about to be switched off.)
        newest = self.bench.exec("ecu2", "/bin/sh", "-c", f"find {STORE}/store -type f -printf '%T@ %p\\n' | sort -n | tail -4 | cut -d' ' -f2-").split()
        for path in newest:
            if path.endswith((".log", ".rec", ".journal")) or "log" in os.path.basename(path):
                self.bench.exec("ecu2", "/bin/sh", "-c", f"head -c 37 /dev/urandom >>{path}")
        self.bench.vecu("start", "ecu2")
        workload.wait_commit(committed)
        workload.voted()
        self.bench.vecu("kill", "ecu1")
        try:
            workload.goes_on("ecu2")
            self.assertGreater(workload.committed(), committed)
            workload.verify()
        finally:
            self.bench.vecu("start", "ecu1")


if __name__ == "__main__":
    main()
