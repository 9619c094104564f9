#!/usr/bin/python3
"""Checkpoints: a program killed with its node goes on elsewhere from the newest one;
a hundred checkpoints of a program that changes its mappings all the time, and
any of them restored beside the original."""
from bench import NOT_FOUND, FAILED, Case, find, main, tracee, wait_until


class Restore(Case):
    def numbers(self, workload):
        return [int(x.split()[1]) for x in workload.lines() if x.startswith("count ")]

    def test_node_power_off_goes_on_from_the_newest_committed(self):
        workload = self.start("phoenix", [tracee("counter"), "10000"], "--interval", "100ms", "--standby", "ecu2")
        workload.ready()
        workload.wait_commit(5)
        workload.voted()
        seq = workload.committed()
        self.bench.vecu("kill", "ecu1")
        self.addCleanup(self.bench.vecu, "start", "ecu1")
        at = len(workload.lines())
        last_before = self.numbers(workload)[-1]
        seqs = sorted(int(c["seq"]) for c in self.bench.baton("checkpoints", "phoenix"))
        self.assertGreaterEqual(seqs[-1], seq, "a committed checkpoint is missing")
        workload.goes_on("ecu2")
        wait_until(lambda: len(workload.lines()) > at + 10, 30, "the program prints again")
        after = [int(x.split()[1]) for x in workload.lines()[at:] if x.startswith("count ")]
        self.assertEqual(after, list(range(after[0], after[0] + len(after))), "it skips or repeats numbers")
        self.assertLessEqual(after[0], last_before + 1)
        self.assertGreater(after[0], 5, "it began anew instead of going on")
        workload.verify()
        self.assertEqual(workload.place()[0], "ecu2")

    def test_node_comes_back_does_not_run_a_second_instance(self):
        workload = self.start("single", [tracee("counter"), "10000"], "--interval", "100ms", "--standby", "ecu2")
        workload.ready()
        workload.wait_commit(3)
        workload.voted()
        self.bench.vecu("kill", "ecu1")
        try:
            workload.goes_on("ecu2")
        finally:
            self.bench.vecu("start", "ecu1")
        workload.verify()
        self.assertEqual(workload.count(["ecu1", "ecu2", "ecu3"]), 1)

    def test_hundred_checkpoints_under_churn_each_equal_to_the_frozen_original(self):
        workload = self.start("churn", [tracee("churn")], "--interval", "10s", "--verify", "--standby", "ecu2", "--keep-last", "400")
        workload.ready()
        seqs = []
        for _ in range(100):
            made = self.bench.baton("checkpoint", "churn", timeout=60)
            seqs.append(int(find(made, "seq")))
        self.assertEqual(seqs, sorted(set(seqs)))
        workload.verify()
        problem = self.bench.field("churn", "problem")
        self.assertFalse(problem, "verify mode found a difference")
        # Its restored copies verify themselves too, beside the original.
        for seq in seqs[::25] + seqs[-1:]:
            with self.subTest(seq=seq):
                copy = f"churn-{seq}"
                self.bench.baton("restore", f"churn@{seq}", "--to", "ecu2", "--as", copy)
                before = sum(x == "ok" for x in workload.lines())
                self.bench.exec("ecu2", "kill", "-USR1", str(self.bench.field(copy, "pid")))
                workload.wait_line("ok", before + 1)
                self.bench.baton("delete", copy, "--yes")

    def test_restore_of_a_running_workload_without_as_is_refused(self):
        workload = self.start("busy", [tracee("counter"), "10000"], "--interval", "100ms", "--standby", "ecu2")
        workload.ready()
        seq = workload.wait_commit(2)
        self.bench.baton("restore", f"busy@{seq}", "--to", "ecu2", expect=FAILED)
        self.bench.baton("restore", "busy@99999999", "--to", "ecu2", "--as", "other", expect=NOT_FOUND)
        self.bench.baton("restore", "nobody@1", "--to", "ecu2", expect=NOT_FOUND)
        workload.verify()

    def test_clock_of_a_restored_program_includes_the_time_away(self):
        workload = self.start("time", [tracee("clocks")], "--interval", "100ms", "--standby", "ecu3")   # whose clock is behind
        workload.ready()
        workload.wait_commit(3)
        workload.voted()
        self.bench.vecu("kill", "ecu1")
        try:
            workload.goes_on("ecu3")
        finally:
            self.bench.vecu("start", "ecu1")
        workload.verify()


if __name__ == "__main__":
    main()
