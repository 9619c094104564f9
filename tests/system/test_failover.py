#!/usr/bin/python3
"""Failover: the node, its agent, its link or its program goes, and the program goes on elsewhere,
from the newest committed checkpoint, with never two of it."""
import time

from bench import Case, main, wait_until
from failover import Witness, hot_events, protected

PREFERRED_MS = 70      # promised on a quiet machine; tests allow for load


class Failover(Case):
    def witness(self, name, *options, mode="hot", node="ecu1"):
        witness = Witness(self.bench, name, "--mode", mode, "--interval", "20ms" if mode == "hot" else "50ms", "--standby", "ecu2", *options, node=node)
        self.addCleanup(lambda: self.bench.call("delete", name, "--yes"))
        witness.runs_on(node)
        if mode == "hot":
            wait_until(lambda: hot_events(self.bench, name), 60, f"{name} has a hot standby")
        return protected(self.bench, witness)

    def settle(self, node):
        self.bench.vecu("start", node)
        wait_until(lambda: self.bench.baton("node", "show", node)["state"] == "ready", 60, f"{node} is ready again")

    def test_power_off_hot_standby_goes_on_and_the_node_returns_as_standby(self):
        witness = self.witness("power")
        self.bench.vecu("kill", "ecu1")
        witness.runs_on("ecu2")
        self.settle("ecu1")
        (change,) = witness.prove(self, most_lost_ms=500)
        print(f"gap {change[2]:.1f} ms, told again {change[3]}", flush=True)
        self.assertEqual(change[:2], ("ecu1", "ecu2"))
        wait_until(lambda: "ecu1" in (self.bench.show("power").get("standbys") or []) or "ecu3" in (self.bench.show("power").get("standbys") or []), 60, "it has a standby again")
        protected(self.bench, witness)
        witness.verify()
        # And once more, the other way round.
        node, _ = witness.place()
        self.bench.vecu("kill", node)
        wait_until(lambda: witness.host() != node, 30, "it runs elsewhere")
        self.settle(node)
        self.assertEqual(len(witness.prove(self, most_lost_ms=500)), 2)

    def test_warm_standby_takes_over(self):
        witness = self.witness("warm", mode="warm")
        self.bench.vecu("kill", "ecu1")
        witness.runs_on("ecu2")
        self.settle("ecu1")
        (change,) = witness.prove(self, most_lost_ms=2000)
        print(f"gap {change[2]:.1f} ms", flush=True)

    def test_cut_off_primary_stands_still_before_the_standby_goes_on(self):
        witness = self.witness("island")
        self.bench.vecu("cut", "ecu1")
        try:
            witness.runs_on("ecu2")
            time.sleep(0.5)
        finally:
            self.bench.vecu("heal")
        (change,) = witness.prove(self)
        self.assertEqual(change[:2], ("ecu1", "ecu2"))
        wait_until(lambda: witness.count(["ecu1"]) == 0 or witness.host() == "ecu1", 60, "what was cut off is gone from ecu1")
        witness.prove(self)

    def test_standby_and_third_voter_gone_primary_stands_still_and_goes_on(self):
        witness = self.witness("alone")
        self.bench.vecu("cut", "ecu1", "ecu2")
        self.bench.vecu("cut", "ecu1", "ecu3")
        try:
            wait_until(lambda: (n := len(witness.told_lines())) and (time.sleep(0.3) or len(witness.told_lines()) == n or witness.host() == "ecu2"), 20, "it stands still")
        finally:
            self.bench.vecu("heal")
        wait_until(lambda: (n := len(witness.told_lines())) and (time.sleep(0.2) or len(witness.told_lines()) > n), 30, "it goes on")
        witness.prove(self)

    def test_agent_killed_program_goes_on_somewhere(self):
        witness = self.witness("agentless")
        self.bench.vecu("kill-agent", "ecu1")
        witness.runs_on("ecu2")
        self.settle("ecu1")
        self.assertEqual(len(witness.prove(self)), 1)

    def test_warden_killed_program_goes_on_somewhere(self):
        witness = self.witness("wardenless")
        self.bench.vecu("kill-warden", "ecu1")
        lines = len(witness.told_lines())
        self.settle("ecu1")
        wait_until(lambda: len(witness.told_lines()) > lines + 50, 30, "it goes on")
        witness.prove(self)

    def test_stopped_agent_that_wakes_later_finds_itself_replaced(self):
        witness = self.witness("sleeper")
        agents = self.bench.processes("ecu1", "baton-agent")
        self.bench.exec("ecu1", "kill", "-STOP", *map(str, agents))
        try:
            witness.runs_on("ecu2")
            time.sleep(0.3)
        finally:
            self.bench.exec("ecu1", "kill", "-CONT", *map(str, agents))
        wait_until(lambda: witness.count(["ecu1"]) == 0, 60, "the old one is gone from ecu1")
        self.assertEqual(len(witness.prove(self)), 1)

    def test_coordinator_gone_failover_happens_all_the_same(self):
        witness = self.witness("headless")
        self.bench.vecu("kill", "coordinator")
        try:
            self.bench.vecu("kill", "ecu1")
            witness.runs_on("ecu2")
        finally:
            self.bench.vecu("start", "coordinator")
            self.bench.vecu("start", "ecu1")
        wait_until(lambda: self.bench.call("show", "headless").returncode == 0 and self.bench.field("headless", "node") == "ecu2", 60, "the coordinator knows of it")
        self.assertEqual(len(witness.prove(self, most_lost_ms=500)), 1)

    def test_program_that_ends_is_not_run_on(self):
        witness = self.witness("mortal")
        node, pid = witness.place()
        self.bench.exec(node, "kill", "-TERM", str(pid))
        wait_until(lambda: self.bench.field("mortal", "state") == "exited", 30, "its end is known")
        lines = len(witness.told_lines())
        time.sleep(1)
        self.assertEqual(len(witness.told_lines()), lines, "somebody runs it on")

    def test_program_that_crashes_goes_on_at_its_standby_when_asked_to(self):
        witness = self.witness("phoenix", "--on-exit", "failover")
        node, pid = witness.place()
        self.bench.exec(node, "kill", "-SEGV", str(pid))
        witness.runs_on("ecu2")
        self.assertEqual(len(witness.prove(self, most_lost_ms=500)), 1)

    def test_program_that_is_not_healthy_goes_on_at_its_standby(self):
        flag = f"{self.bench.shared}/ill"
        witness = self.witness("patient", "--on-exit", "failover", "--health-exec", f'test "$(uname -n)" != ecu1 || test ! -e {flag}',
                               "--health-interval", "100ms", "--health-grace", "200ms", "--health-failures", "2")
        wait_until(lambda: self.bench.field("patient", "health") == "healthy", 30, "it is found healthy")
        with open(flag, "w", encoding="ascii"):
            pass
        witness.runs_on("ecu2")
        self.assertEqual(len(witness.prove(self, most_lost_ms=1000)), 1)
        self.assertTrue([e for e in self.bench.baton("events") if e["workload"] == "patient" and e["kind"] == "unhealthy"])

    def test_program_goes_back_to_its_node_when_asked_to(self):
        witness = self.witness("homesick", "--fail-back", "auto")
        self.bench.vecu("kill", "ecu1")
        witness.runs_on("ecu2")
        self.settle("ecu1")
        wait_until(lambda: witness.host() == "ecu1", 90, "it is back on ecu1")
        failover, back = witness.prove(self, most_lost_ms=500)
        self.assertEqual((failover[:2], back[:2], back[3]), (("ecu1", "ecu2"), ("ecu2", "ecu1"), 0), "back by a migration, which loses nothing")
        self.assertTrue([e for e in self.bench.baton("events") if e["workload"] == "homesick" and e["kind"] == "fail back"])

    def test_drained_node_is_left_and_taken_again(self):
        witness = self.witness("guest")
        drained = self.bench.baton("node", "drain", "ecu1", timeout=120)
        self.assertEqual((drained["moved"], drained["total"]), (1, 1), drained)
        witness.runs_on("ecu2")
        self.assertEqual(self.bench.baton("node", "show", "ecu1")["state"], "drained")
        self.assertNotIn("ecu1", self.bench.show("guest")["standbys"])
        self.bench.baton("node", "resume", "ecu1")
        self.assertEqual(self.bench.baton("node", "show", "ecu1")["state"], "ready")
        wait_until(lambda: "ecu1" in self.bench.show("guest")["standbys"], 30, "it stands by there again")
        for before, after, _, again in witness.prove(self):
            self.assertEqual(again, 0, f"{before} -> {after}")

    def test_deleted_program_is_gone_everywhere(self):
        witness = self.witness("gone")
        witness.delete()
        lines = len(witness.told_lines())
        time.sleep(0.5)
        self.assertEqual(len(witness.told_lines()), lines, "somebody runs it on")
        # Its name is free again.
        again = self.witness("gone")
        again.verify()

    def test_migration_there_and_back_with_voters(self):
        witness = self.witness("mover")
        witness.migrate("ecu2")
        protected(self.bench, witness)
        witness.migrate("ecu3")
        protected(self.bench, witness)
        witness.migrate("ecu1")
        for before, after, gap, again in witness.prove(self):
            self.assertEqual(again, 0, f"{before} -> {after}")


if __name__ == "__main__":
    main()
