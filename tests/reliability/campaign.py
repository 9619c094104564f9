#!/usr/bin/python3
"""Injects faults into a bench of virtual ECUs, one after the other, and proves after each that never
two instances ran, that nothing was skipped, and how long nobody ran.

    campaign.py BUILD_DIR [--injections 1000] [--seed 1] [--mode hot] [--out FILE.json] [--table FILE.md]

A witness (tests/tracees/witness.cc) appends a line with the wall clock, its host and a count every
2 ms to a file that all machines see. Two at once would interleave; a takeover from anything but a
committed checkpoint would skip or lose too much. With --table the result is written between the
marks of a document (docs/reliability.md).
"""
import argparse
import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))
import bench as bench_module  # noqa: E402
from bench import Bench, wait_until  # noqa: E402
from failover import Witness, protected  # noqa: E402

NODES = ["ecu1", "ecu2", "ecu3"]


class Campaign:
    def __init__(self, build, mode, seed):
        bench_module.BUILD = os.path.realpath(build)
        self.random = random.Random(seed)
        self.mode = mode
        self.bench = Bench(3)
        self.witness = Witness(self.bench, "witness", "--mode", mode, "--interval", "20ms", "--standby", "ecu2", node="ecu1")
        self.done, self.results = 0, []

    def primary(self):
        return self.bench.field("witness", "node")

    def others(self):
        primary = self.primary()
        return [n for n in NODES if n != primary]

    # --- faults: each is undone before the next

    def power_off(self):
        node = self.primary()
        self.bench.vecu("kill", node)
        return lambda: self.bench.vecu("start", node)

    def agent_killed(self):
        node = self.primary()
        self.bench.vecu("kill-agent", node)
        return lambda: self.bench.vecu("start", node)

    def agent_hangs(self):
        node = self.primary()
        agents = [str(p) for p in self.bench.processes(node, "baton-agent")]
        self.bench.exec(node, "kill", "-STOP", *agents)
        return lambda: self.bench.exec(node, "kill", "-CONT", *agents)

    def warden_killed(self):
        node = self.primary()
        self.bench.vecu("kill-warden", node)
        return lambda: self.bench.vecu("start", node)

    def coordinator_killed(self):
        self.bench.vecu("kill-agent", "coordinator")
        return lambda: self.bench.vecu("start", "coordinator")

    def primary_cut_off(self):
        self.bench.vecu("cut", self.primary())
        return lambda: self.bench.vecu("heal")

    def link_cut(self):
        pair = [self.primary(), self.random.choice(self.others())]
        self.random.shuffle(pair)
        self.bench.vecu("cut", *pair, *self.random.choice([[], ["--one-way"]]))
        return lambda: self.bench.vecu("heal")

    def standby_off(self):
        node = self.random.choice(self.others())
        self.bench.vecu("kill", node)
        return lambda: self.bench.vecu("start", node)

    def coordinator_and_power_off(self):
        first, second = self.coordinator_killed(), self.power_off_known()
        return lambda: (first(), second())

    def power_off_known(self):
        node = self.witness.host()
        self.bench.vecu("kill", node)
        return lambda: self.bench.vecu("start", node)

    def slow_links(self):
        node = self.primary()
        self.bench.vecu("slow", node, "--loss", "2%", "--rate", "50mbit")
        return lambda: self.bench.vecu("heal")

    KINDS = ["power_off", "agent_killed", "agent_hangs", "warden_killed", "coordinator_killed", "primary_cut_off", "link_cut",
             "standby_off", "coordinator_and_power_off", "slow_links"]
    TAKES_OVER = {"power_off", "agent_killed", "agent_hangs", "primary_cut_off", "coordinator_and_power_off"}

    def settled(self):
        wait_until(lambda: self.bench.call("node", "ls").returncode == 0, 60, "the coordinator answers")
        wait_until(lambda: all(n["state"] == "ready" for n in self.bench.baton("node", "ls")), 60, "all nodes are ready")
        protected(self.bench, self.witness, timeout_s=90)

    def inject(self, kind):
        self.settled()
        time.sleep(self.random.random() * 0.2)
        before = len(self.witness.told_lines())
        host = self.witness.host()
        undo = getattr(self, kind)()
        try:
            if kind in self.TAKES_OVER:
                wait_until(lambda: self.witness.host() != host, 30, f"{kind}: somebody takes over from {host}")
            else:
                time.sleep(0.5)
        finally:
            undo()
        wait_until(lambda: len(self.witness.told_lines()) > before + 100, 30, f"{kind}: it goes on")
        lines = self.witness.told_lines()[max(0, before - 1):]
        problem = self.check(lines)
        gap = max((b[0] - a[0]) / 1e6 for a, b in zip(lines, lines[1:]))
        changes = [(a, b) for a, b in zip(lines, lines[1:]) if a[1] != b[1]]
        lost = max([a[2] - b[2] + 1 for a, b in changes] or [0]) * self.witness.period_us / 1000
        self.results.append({"kind": kind, "gap_ms": gap, "lost_ms": lost, "takeovers": len(changes), "problem": problem})
        return self.results[-1]

    @staticmethod
    def check(lines):
        # Written in the order of the appends. Two that ran at once would take turns: a machine that another
        # has followed is not seen again within one injection. (The first line after a takeover may bear an
        # old time: the checkpoint was taken between reading the clock and writing the line.)
        left = set()
        for i, (wall, host, count) in enumerate(lines):
            if i and lines[i - 1][1] != host:
                left.add(lines[i - 1][1])
            if host in left:
                return f"two at once: {host} tells of itself again after another"
            if i and lines[i - 1][1] == host and count != lines[i - 1][2] + 1:
                return f"{host} skips from {lines[i - 1][2]} to {count}"
            if i and lines[i - 1][1] != host and count > lines[i - 1][2] + 1:
                return f"{host} goes on at {count} after {lines[i - 1][2]}"
        return None

    def run(self, injections):
        kinds = []
        while self.done < injections:
            if not kinds:
                kinds = list(self.KINDS)
                self.random.shuffle(kinds)
            kind = kinds.pop()
            try:
                result = self.inject(kind)
            except AssertionError as e:
                result = {"kind": kind, "gap_ms": None, "lost_ms": None, "takeovers": 0, "problem": str(e)[:300]}
                self.results.append(result)
            self.done += 1
            print(f"{self.done}: {json.dumps(result)}", flush=True)
            if result["problem"]:
                self.bench.logs(60)


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def table(results, mode):
    failures = sum(1 for r in results if r["problem"])
    bound = 3.0 / len(results) if failures == 0 else None
    out = [f"{len(results)} injections, mode {mode}; {failures} failures" +
           (f": at most {bound * 100:.2f} % with 95 % confidence (rule of three)." if bound else "."), "",
           "| fault | injections | taken over | failures | nobody ran, p50 ms | p99 ms | longest ms | told again, longest ms |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for kind in Campaign.KINDS:
        of = [r for r in results if r["kind"] == kind]
        gaps = [r["gap_ms"] for r in of if r["gap_ms"] is not None]
        lost = [r["lost_ms"] for r in of if r["lost_ms"] is not None]
        if not of:
            continue
        out.append(f"| {kind.replace('_', ' ')} | {len(of)} | {sum(1 for r in of if r['takeovers'])} | {sum(1 for r in of if r['problem'])} | "
                   f"{percentile(gaps, 0.5):.0f} | {percentile(gaps, 0.99):.0f} | {max(gaps, default=float('nan')):.0f} | {max(lost, default=float('nan')):.0f} |")
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--injections", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", choices=("hot", "warm"), default="hot")
    parser.add_argument("--out")
    parser.add_argument("--table")
    args = parser.parse_args()
    if os.geteuid() != 0:
        print("SKIPPED: root, to make virtual ECUs")
        return 77
    campaign = Campaign(args.build, args.mode, args.seed)
    try:
        campaign.run(args.injections)
    finally:
        campaign.bench.down()
    text = table(campaign.results, args.mode)
    print(text)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as f:
            json.dump(campaign.results, f, indent=1)
    if args.table:
        begin, end = "<!-- campaign: begin -->", "<!-- campaign: end -->"
        with open(args.table, encoding="utf-8") as f:
            document = f.read()
        head, tail = document.split(begin)[0], document.split(end)[1]
        with open(args.table, "w", encoding="utf-8") as f:
            f.write(head + begin + "\n" + text + "\n" + end + tail)
    return 1 if any(r["problem"] for r in campaign.results) else 0


if __name__ == "__main__":
    sys.exit(main())
