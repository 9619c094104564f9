#!/usr/bin/python3
"""Every self-checking program moves ecu1 → ecu2 → ecu3 → ecu1 under continuous
checkpoints, each compared with the frozen original, and finds itself unharmed."""
import os
import time

from bench import FAILED, Case, find, main, text_of, tracee, wait_until

PROGRAMS = {
    "counter": ["20000", "FOLDER/numbers"], "threads": [], "registers": [], "mappings": [], "churn": [], "signals": [], "pending": [], "tree": [], "events": [], "clocks": [],
    "writer": ["--mib", "64", "--pages", "500"], "generator.py": [], "descriptors": ["FOLDER"], "files": ["--dir", "FOLDER"],
}


def touch(path):
    with open(path, "w", encoding="ascii"):
        pass


class Tracees(Case):
    def go_round(self, program):
        folder = f"{self.bench.shared}/{program}-files"
        os.makedirs(folder, exist_ok=True)
        arguments = [a.replace("FOLDER", folder) for a in PROGRAMS[program]]
        name = program.split(".")[0]
        workload = self.start(name, [tracee(program), *arguments], "--interval", "200ms", "--verify", "--standby", "ecu2")
        workload.ready()
        workload.verify()
        workload.wait_commit()
        before = workload.place()[1]
        for node in ("ecu2", "ecu3", "ecu1"):
            report = workload.migrate(node)
            self.assertEqual(find(report, "strategy"), "precopy")
            workload.verify()
            workload.wait_commit(workload.committed())
            workload.verify()
            self.assertEqual(workload.count(["ecu1", "ecu2", "ecu3"]) > 0, True)
        others = workload.count(["ecu2", "ecu3"])
        self.assertEqual(others, 0, "processes of it are left on nodes that it has left")
        self.assertTrue(before)


def make(program):
    def test(self):
        self.go_round(program)
    test.__doc__ = f"{program} goes round the three nodes"
    return test


for each in PROGRAMS:
    setattr(Tracees, f"test_{each.split('.')[0]}_round_trip_unharmed", make(each))


class Counter(Case):
    nodes = 2

    def test_counter_migrates_and_skips_no_number(self):
        path = self.bench.shared + "/numbers"
        workload = self.start("numbers", [tracee("counter"), "5000", path], "--interval", "100ms")
        workload.ready()
        for to in ("ecu2", "ecu1", "ecu2"):
            time.sleep(0.3)
            workload.migrate(to)
        at = len(text_of(path))
        wait_until(lambda: len(text_of(path)) > at + 200, 20, "the counter goes on")
        numbers = [int(x.split()[1]) for x in text_of(path).splitlines()]
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)))

    # Counts in a file that all nodes see, under a lock on it; arguments: the file, seconds held, seconds not held.
    LOCKER = ("import fcntl, os, sys, time\n"
              "f, held, free, n = open(sys.argv[1], 'r+'), float(sys.argv[2]), float(sys.argv[3]), 0\n"
              "print('ready', flush=True)\n"
              "while True:\n"
              "  fcntl.lockf(f, fcntl.LOCK_EX)\n"
              "  n += 1\n"
              "  time.sleep(held)\n"
              "  os.pwrite(f.fileno(), b'%d' % n, 0)\n"
              "  if free: fcntl.lockf(f, fcntl.LOCK_UN); time.sleep(free)\n")

    def locker(self, name, held, free):
        path = f"{self.bench.shared}/{name}.locked"
        touch(path)
        workload = self.start(name, ["/usr/bin/python3", "-S", "-E", "-c", self.LOCKER, path, str(held), str(free)], "--interval", "50ms").ready()
        return workload, lambda: int(text_of(path) or 0)

    def test_lock_that_is_held_now_and_then_does_not_hinder_a_move(self):
        workload, count = self.locker("locker", 0.004, 0.016)
        for number in range(12):
            workload.migrate("ecu2" if number % 2 == 0 else "ecu1")
            before = count()
            wait_until(lambda: count() > before + 3, 20, "it counts on")

    def test_lock_that_is_never_let_go_is_named_and_the_program_runs_on(self):
        workload, count = self.locker("clinger", 0.005, 0)
        problem = self.bench.baton("migrate", "clinger", "--to", "ecu2", expect=FAILED)
        self.assertIn("lock", problem)
        self.assertIn("clinger.locked", problem)
        before = count()
        wait_until(lambda: count() > before + 3, 20, "it counts on")
        self.assertEqual(workload.place()[0], "ecu1")

    def test_logs_hold_all_that_a_program_printed_since_it_moved(self):
        self.bench.baton("run", "talker", "--node", "ecu1", "--", tracee("counter"), "20000")
        self.addCleanup(self.bench.call, "delete", "talker", "--yes")
        wait_until(lambda: "count 20" in self.bench.call("logs", "talker").stdout, 30, "logs of a program show its output")
        self.bench.baton("migrate", "talker", "--to", "ecu2")
        text = self.bench.call("logs", "talker").stdout
        last = max(int(x.split()[1]) for x in text.splitlines() if x.startswith("count ")) if "count" in text else 20
        wait_until(lambda: f"count {last + 20}\n" in self.bench.call("logs", "talker").stdout, 30, "logs after a move go on")

    def test_protected_program_moves_with_its_children(self):
        output = self.bench.shared + "/protected.out"
        touch(output)
        self.bench.exec("ecu1", "/bin/sh", "-c", f"setsid {tracee('tree')} >>{output} 2>&1 </dev/null & echo $!")
        wait_until(lambda: "ready" in text_of(output), 20, "the program is ready")
        pid = min(self.bench.processes("ecu1", tracee("tree")))
        self.bench.baton("protect", "family", "--node", "ecu1", "--pid", str(pid), "--interval", "200ms")
        self.addCleanup(self.bench.call, "delete", "family", "--yes")
        self.bench.baton("migrate", "family", "--to", "ecu2")
        self.bench.exec("ecu2", "kill", "-USR1", str(self.bench.field("family", "pid")))
        wait_until(lambda: "ok" in text_of(output).split(), 20, "it verifies itself on ecu2")
        self.assertNotIn("FAILED", text_of(output))

    def test_delete_of_a_protected_program_leaves_it_running(self):
        output = self.bench.shared + "/spared.out"
        touch(output)
        self.bench.exec("ecu1", "/bin/sh", "-c", f"setsid {tracee('threads')} >>{output} 2>&1 </dev/null &")
        wait_until(lambda: "ready" in text_of(output), 20, "the program is ready")
        pid = min(self.bench.processes("ecu1", tracee("threads")))
        self.bench.baton("protect", "spared", "--node", "ecu1", "--pid", str(pid), "--interval", "100ms")
        wait_until(lambda: int(self.bench.field("spared", "last_committed") or 0) > 2, 30, "it is checkpointed")
        self.bench.baton("delete", "spared", "--yes")
        self.bench.exec("ecu1", "kill", "-USR1", str(pid))
        wait_until(lambda: "ok" in text_of(output).split(), 20, "it verifies itself afterwards")
        self.bench.exec("ecu1", "kill", "-9", str(pid))


if __name__ == "__main__":
    main()
