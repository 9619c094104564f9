#!/usr/bin/python3
"""Links that are cut, lossy or slow while checkpoints and migrations travel."""
import threading

from bench import Case, find, main, tracee, wait_until


class Link(Case):
    nodes = 3

    def tearDown(self):
        self.bench.vecu("heal")

    def test_standby_cut_off_and_back_commits_go_on(self):
        workload = self.start("parted", [tracee("writer"), "--mib", "32", "--pages", "50"], "--interval", "100ms", "--standby", "ecu2").ready()
        workload.wait_commit(2)
        self.bench.vecu("cut", "ecu1", "ecu2")
        self.bench.exec("ecu1", "sleep", "3")
        stuck = workload.committed()
        self.bench.exec("ecu1", "sleep", "2")
        self.assertEqual(workload.committed(), stuck, "it commits what its only standby cannot have")
        self.assertGreater(int(self.bench.field("parted", "lag_us")), 1_000_000)
        workload.verify()
        self.bench.vecu("heal")
        workload.wait_commit(stuck)
        wait_until(lambda: int(self.bench.field("parted", "lag_us")) < 2_000_000, 60, "the lag recovers")
        workload.verify()

    def test_coordinator_cut_off_program_and_commits_unharmed(self):
        workload = self.start("alone", [tracee("threads")], "--interval", "100ms", "--standby", "ecu2").ready()
        before = workload.wait_commit(2)
        self.bench.vecu("cut", "coordinator", "ecu1")
        self.bench.exec("ecu1", "sleep", "3")
        self.bench.vecu("heal")
        wait_until(lambda: workload.committed() > before + 5, 30, "it went on committing")
        workload.verify()

    def test_migration_over_a_lossy_late_link(self):
        workload = self.start("rough", [tracee("writer"), "--mib", "16", "--pages", "50"], "--interval", "500ms", "--standby", "ecu3").ready()
        self.bench.vecu("slow", "ecu2", "--rate", "200mbit", "--loss", "1%", "--delay", "5ms")
        workload.migrate("ecu2")
        workload.verify()

    def test_link_cut_in_the_middle_of_a_migration_leaves_one_instance(self):
        workload = self.start("halfway", [tracee("writer"), "--mib", "256", "--pages", "50"], "--interval", "1s", "--standby", "ecu3").ready()
        self.bench.vecu("slow", "ecu2", "--rate", "200mbit")
        cut = threading.Timer(1.5, lambda: self.bench.vecu("cut", "ecu1", "ecu2"))
        cut.start()
        done = self.bench.call("migrate", "halfway", "--to", "ecu2", timeout=120)
        cut.join()
        self.assertNotEqual(done.returncode, 0, "it was done before the cut")
        self.bench.vecu("heal")
        wait_until(lambda: workload.count(["ecu1", "ecu2", "ecu3"]) == 1 and self.bench.field("halfway", "state") == "running", 60, "one instance runs")
        workload.verify()
        workload.migrate("ecu2")
        workload.verify()

    def test_bandwidth_limit_is_kept(self):
        workload = self.start("modest", [tracee("writer"), "--mib", "32", "--pages", "1"], "--interval", "10s", "--standby", "none").ready()
        report = workload.migrate("ecu2", "--bandwidth", "80mbit")
        seconds = float(find(report, "total_ms")) / 1000
        self.assertLess(int(find(report, "bytes_sent")) / seconds, 10e6 * 1.3)
        workload.verify()


if __name__ == "__main__":
    main()
