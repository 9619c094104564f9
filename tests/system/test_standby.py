#!/usr/bin/python3
"""Warm and hot standbys: what is kept ready, what a migration and a restore make of it, and
what happens to it when agents, wardens and memory go."""
from bench import Case, main, tracee, wait_until


class Hot(Case):
    nodes = 2

    def events(self, name, kind):
        told = self.bench.baton("events")
        return [e["text"] for e in told if e["workload"] == name and e["kind"] == kind]

    def hot(self, name, command, *options):
        workload = self.start(name, command, "--mode", "hot", "--interval", "50ms", "--standby", "ecu2", *options).ready()
        self.wait_standby(workload, "hot at")
        return workload

    def wait_standby(self, workload, what, count=1):
        wait_until(lambda: sum(what in text for text in self.events(workload.name, "standby")) >= count, 60,
                   f"{workload.name} has a standby that is {what}; told: {self.events(workload.name, 'standby')}")


class Standby(Hot):
    def test_migrate_to_the_hot_standby_uses_its_shadow_and_comes_back(self):
        workload = self.hot("mover", [tracee("threads")])
        workload.migrate("ecu2")
        workload.verify()
        moved = self.events("mover", "migrated")[-1]
        self.assertIn("apply", moved, "it was built in the pause")
        self.wait_standby(workload, "hot at", 2)   # ecu1 is the standby now
        workload.migrate("ecu1")
        workload.verify()
        self.assertIn("apply", self.events("mover", "migrated")[-1])

    def test_node_power_off_runs_the_shadow(self):
        workload = self.hot("phoenix", [tracee("counter"), "10000"])
        workload.wait_commit(10)
        workload.voted()
        at = len(workload.lines())
        self.bench.vecu("kill", "ecu1")
        try:
            workload.goes_on("ecu2")
            wait_until(lambda: len(workload.lines()) > at + 10, 30, "the program prints again")
            after = [int(x.split()[1]) for x in workload.lines()[at - 1:] if x.startswith("count ")]
            breaks = [(a, b) for a, b in zip(after, after[1:]) if b != a + 1]
            self.assertLessEqual(len(breaks), 1, f"it skips or repeats numbers: {breaks}")
            self.assertTrue(all(b <= a for a, b in breaks), f"it skips numbers: {breaks}")
            self.assertGreater(after[0], 5, "it began anew instead of going on")
            workload.verify()
            self.assertIn("out of the shadow", self.events("phoenix", "restored")[-1])
        finally:
            self.bench.vecu("start", "ecu1")

    def test_cold_workload_is_built_ahead_of_the_pause(self):
        workload = self.start("cold", [tracee("mappings")], "--interval", "200ms", "--standby", "ecu2").ready()
        workload.migrate("ecu2")
        workload.verify()
        self.assertIn("apply", self.events("cold", "migrated")[-1])


class Faults(Hot):
    """The same standbys, and what kills them."""

    def test_agent_and_warden_of_the_standby_killed_shadow_is_built_again(self):
        workload = self.hot("stubborn", [tracee("threads")])
        for number, who in enumerate(("kill-agent", "kill-warden"), start=2):
            self.bench.vecu(who, "ecu2")
            self.bench.vecu("start", "ecu2")
            self.wait_standby(workload, "hot at", number)
        workload.migrate("ecu2")
        workload.verify()

    def test_processes_come_and_go_shadow_is_built_beside(self):
        workload = self.hot("forker", [tracee("churn")])
        workload.wait_commit(workload.committed() + 20)
        workload.migrate("ecu2")
        workload.verify()


if __name__ == "__main__":
    main()
