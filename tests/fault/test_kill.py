#!/usr/bin/python3
"""Agent, warden and coordinator killed at named points of a migration, of a
checkpoint and in the middle of an injection: the program runs on exactly once,
unharmed, and nothing that was committed is lost."""
import re
import subprocess

from bench import Case, main, tracee, wait_until

# machine whose program dies there → the points, in the order of a migration from ecu1 to ecu2
POINTS = {
    ("ecu1", "agent"): ["agent.migrate.begin", "agent.migrate.prepared", "agent.migrate.round", "agent.migrate.held", "agent.migrate.frozen", "agent.migrate.shipped",
                        "agent.migrate.built", "agent.migrate.handover.before", "agent.migrate.handover.after", "agent.migrate.activated",
                        "agent.migrate.destroy.before", "agent.migrate.destroyed", "agent.checkpoint.captured", "agent.replicate.commit"],
    ("ecu2", "agent"): ["agent.target.prepare", "agent.target.build", "agent.target.built", "agent.target.activate", "agent.target.activated",
                        "agent.receive.pages", "agent.receive.commit", "agent.receive.committed", "store.commit.before_log", "store.commit.after_log"],
    ("ecu1", "warden"): ["warden.round.before", "warden.round.done", "warden.capture.before", "warden.capture.done", "warden.hold.before", "warden.hold.after",
                         "inject.signals_blocked", "inject.registers_set", "inject.running", "inject.done", "inject.registers_back"],
    ("ecu2", "warden"): ["warden.build.begin", "warden.fill.before", "warden.fill.after", "warden.build.done", "warden.activate.before", "warden.activate.after"],
    ("coordinator", "coordinator"): ["coordinator.migrate.recorded", "coordinator.owner.before_commit", "coordinator.owner.committed", "coordinator.migrate.answered"],
}


class Kill(Case):
    nodes = 3
    up_options = ("--faults",)

    def one_point(self, machine, program, point):
        name = re.sub("[^a-z0-9]+", "-", point)
        workload = self.start(name, [tracee("threads")], "--interval", "200ms", "--standby", "ecu2,ecu3")
        workload.ready()
        committed = workload.wait_commit(1)
        self.bench.arm(machine, f"{point}=kill")
        try:
            # Whether it succeeds is not the question; that it ends, is.
            try:
                self.bench.call("migrate", name, "--to", "ecu2", timeout=120)
            except subprocess.TimeoutExpired:
                self.fail("the command does not end")
            died = f'"{program}": "ended -9"' in self.bench.vecu("status", "--output", "json")
            if not died:        # a point of the checkpoint loop is passed by itself soon
                died = bool(self.wait_death(program))
            if not died and program == "warden" and workload.place()[0] != machine:   # it was moved before it passed there
                try:
                    self.bench.call("migrate", name, "--to", machine, timeout=120)
                except subprocess.TimeoutExpired:
                    self.fail("the command does not end")
                died = bool(self.wait_death(program))
            if not died and program == "warden":   # one of taking a program up: it is taken up again
                self.bench.vecu("kill-warden", machine)
                self.bench.vecu("start", machine)
                died = bool(self.wait_death(program))
        finally:
            self.bench.arm(machine, "")
            self.bench.vecu("start", machine)
        self.assertTrue(died, f"{point} was never passed")
        for m in ("ecu1", "ecu2", "ecu3"):
            self.bench.vecu("start", m)
        everywhere = ["ecu1", "ecu2", "ecu3"]

        def settled():
            try:
                return workload.count(everywhere) == 1 and self.bench.call("show", name).returncode == 0 and self.bench.field(name, "state") == "running"
            except AssertionError:
                return False
        wait_until(settled, 60, f"one instance runs after {program} died at {point}; there are {workload.count(everywhere)}")
        workload.verify()
        self.assertGreaterEqual(workload.wait_commit(committed), committed)
        workload.delete()

    def wait_death(self, program):
        try:
            return wait_until(lambda: f'"{program}": "ended -9"' in self.bench.vecu("status", "--output", "json"), 5, "it dies")
        except AssertionError:
            return False


def make(machine, program, point):
    def test(self):
        self.one_point(machine, program, point)
    test.__doc__ = f"{program} of {machine} killed at {point}"
    return test


for (each_machine, each_program), points in POINTS.items():
    for each in points:
        setattr(Kill, f"test_{each_machine}_{each_program}_dies_at_{each.replace('.', '_')}", make(each_machine, each_program, each))


class Restart(Case):
    nodes = 2

    def test_agent_killed_program_runs_on_and_commits_again(self):
        workload = self.start("steady", [tracee("threads")], "--interval", "100ms", "--standby", "ecu2").ready()
        seq = workload.wait_commit(2)
        pid = workload.place()[1]
        for machine in ("ecu1", "ecu2"):
            self.bench.vecu("kill-agent", machine)
            self.bench.vecu("start", machine)
            seq = workload.wait_commit(max(seq, workload.committed()))
            workload.verify()
        self.assertEqual(workload.place()[1], pid)
        self.assertEqual(workload.count(["ecu1", "ecu2"]), 1)

    def test_warden_killed_program_runs_on_and_commits_again(self):
        workload = self.start("guarded", [tracee("threads")], "--interval", "100ms", "--standby", "ecu2").ready()
        seq = workload.wait_commit(2)
        self.bench.vecu("kill-warden", "ecu1")
        self.bench.vecu("start", "ecu1")
        workload.wait_commit(max(seq, workload.committed()))
        workload.verify()
        self.assertEqual(workload.count(["ecu1", "ecu2"]), 1)

    def test_coordinator_off_and_on_nothing_is_forgotten(self):
        workload = self.start("kept", [tracee("threads")], "--interval", "100ms", "--standby", "ecu2").ready()
        workload.wait_commit(2)
        self.bench.vecu("kill", "coordinator")
        self.bench.vecu("start", "coordinator")
        wait_until(lambda: self.bench.call("show", "kept").returncode == 0 and self.bench.field("kept", "state") == "running", 30, "the coordinator knows it again")
        workload.wait_commit(workload.committed())
        workload.verify()
        workload.migrate("ecu2")
        workload.verify()


if __name__ == "__main__":
    main()
