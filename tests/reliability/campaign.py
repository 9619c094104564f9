#!/usr/bin/python3
"""Injects faults into a bench of virtual ECUs, one after the other, and proves after each that never
two instances ran, that nothing was skipped, and how long nobody ran.

    campaign.py BUILD_DIR [--injections 1000] [--seed 1] [--mode hot] [--out FILE.json] [--table FILE.md]

Beside it a TCP server runs under output commit, and clients outside ask it all the time: they hash what
was answered into a chain of their connection, so that an answer that a takeover has forgotten, and a
connection that it broke, is noticed.

A witness (tests/tracees/witness.cc) appends a line with the wall clock, its host and a count every
2 ms to a file that all machines see. Two at once would interleave; a takeover from anything but a
committed checkpoint would skip or lose too much. With --table the result is written between the
marks of a document (docs/reliability.md).
"""
import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))
import bench as bench_module  # noqa: E402
from bench import Bench, Workload, text_of, tracee, wait_until  # noqa: E402
from failover import Witness, protected  # noqa: E402

NODES = ["ecu1", "ecu2", "ecu3"]
ADDRESS, PORT = "10.77.0.80", "7500"


class Clients:
    """Two connections to the server from the operator's machine, for the whole campaign."""

    def __init__(self, bench, number):
        self.out, self.stop_file = f"{bench.shared}/clients{number}.out", f"{bench.shared}/clients{number}.stop"
        with open(self.out, "w", encoding="ascii") as out:
            self.process = bench.start_in("operator", tracee("stream"), "ask", ADDRESS, PORT, "2", self.stop_file, stdout=out)
        wait_until(lambda: "connected" in text_of(self.out), 30, "the clients connect")

    def problem(self):
        text = text_of(self.out)
        if "FAILED" in text:
            return "a client: " + text[text.index("FAILED"):].strip()[:200]
        return None if self.process.poll() is None else f"the clients ended with {self.process.returncode}: {text[-100:]}"

    def finish(self):
        with open(self.stop_file, "w", encoding="ascii"):
            pass
        self.process.wait(timeout=60)
        words = text_of(self.out).split()
        return (int(words[-2]), float(words[-1])) if self.process.returncode == 0 and words[-3] == "ok" else None


class Campaign:
    def __init__(self, build, mode, seed):
        bench_module.BUILD = os.path.realpath(build)
        self.random = random.Random(seed)
        self.mode = mode
        self.bench = Bench(3)
        self.witness = Witness(self.bench, "witness", "--mode", mode, "--interval", "20ms", "--standby", "ecu2", node="ecu1")
        self.done, self.results = 0, []
        self.server = Workload(self.bench, "served", [tracee("stream"), "serve", "0.0.0.0", PORT], "--mode", mode, "--interval", "20ms",
                               "--standby", "ecu2", "--address", f"{ADDRESS}/24", "--output-commit", "--durability", "memory", node="ecu1").ready()
        self.clients, self.records, self.longest, self.rounds = None, 0, 0.0, 0

    def primary(self):
        return self.witness.host()      # the coordinator may be away

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
        if not agents:      # the first of two faults at once has killed it
            return lambda: None
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

    def warden_hangs(self):
        node = self.primary()
        # Not its guard (baton-warden --guard-leases), which is there for that.
        wardens = self.bench.exec(node, "pgrep", "-f", "baton-warden --socket").split()
        self.bench.exec(node, "kill", "-STOP", *wardens)
        return lambda: self.bench.exec(node, "kill", "-CONT", *wardens)

    def late_links(self):
        node = self.primary()
        self.bench.vecu("slow", node, "--delay", "15ms")
        return lambda: self.bench.vecu("heal")

    def standby_changed(self):
        node = self.random.choice(self.others())
        self.bench.call("node", "drain", node, timeout=120)      # what cannot be moved at this moment stays
        return lambda: self.bench.baton("node", "resume", node)

    def voter_from_backup(self):
        """A voter's log as it was before the program moved on is put back: what it has promised since, it has forgotten."""
        node = self.random.choice(self.others())
        log = f"{self.bench.dir}/{node}/disk/root/upper/var/lib/baton/agent/tenure"
        backup = f"{self.bench.shared}/{node}.backup"
        self.bench.vecu("kill", node)
        shutil.rmtree(backup, ignore_errors=True)
        subprocess.run(["cp", "-a", log, backup], check=True)      # its owner is the agent's user
        self.bench.vecu("start", node)
        self.settled()
        other = [n for n in self.others() if n != node][0]
        for name in ("witness", "served"):
            if self.bench.field(name, "node") != other:
                self.bench.call("migrate", name, "--to", other, timeout=60)
        self.settled()
        self.bench.vecu("kill", node)
        shutil.rmtree(log)
        subprocess.run(["cp", "-a", backup, log], check=True)
        return lambda: self.bench.vecu("start", node)

    def two_at_once(self):
        kinds = self.random.sample(["agent_killed", "agent_hangs", "warden_killed", "coordinator_killed", "link_cut", "standby_off", "slow_links", "late_links"], 2)
        undo = [(self.UNDONE_FIRST.get(kind, 3), i, getattr(self, kind)()) for i, kind in enumerate(kinds)]
        return lambda: [one() for _, _, one in sorted(undo, key=lambda entry: entry[:2])]

    # A machine that starts waits until all are registered.
    UNDONE_FIRST = {"agent_hangs": 0, "link_cut": 1, "slow_links": 1, "late_links": 1, "coordinator_killed": 2}
    KINDS = ["power_off", "agent_killed", "agent_hangs", "warden_killed", "warden_hangs", "coordinator_killed", "primary_cut_off", "link_cut",
             "standby_off", "standby_changed", "voter_from_backup", "coordinator_and_power_off", "slow_links", "late_links", "two_at_once"]
    TAKES_OVER = {"power_off", "agent_killed", "agent_hangs", "primary_cut_off", "coordinator_and_power_off"}

    def settled(self):
        wait_until(lambda: self.bench.call("node", "ls").returncode == 0, 60, "the coordinator answers")
        wait_until(lambda: all(n["state"] == "ready" for n in self.bench.baton("node", "ls")), 60, "all nodes are ready")
        since = {}

        def protected_again():
            for workload in (self.witness, self.server):
                shown = self.bench.show(workload.name)
                copies = shown.get("standby_copies") or []
                if len(shown.get("voters") or []) != 3 or shown.get("tenure") != "held" or not any(c.get("connected") for c in copies):
                    return False
                committed = int(shown.get("last_committed") or 0)
                if committed < since.setdefault(workload.name, committed) + 5:
                    return False
            return True
        for workload in (self.witness, self.server):
            since[workload.name] = workload.committed()
        wait_until(protected_again, 90, "both have three voters and a standby in step")
        if self.clients is None:
            self.rounds += 1
            self.clients = Clients(self.bench, self.rounds)

    def inject(self, kind):
        self.settled()
        time.sleep(self.random.random() * 0.2)
        before = len(self.witness.told_lines())
        host = self.witness.host()
        # The coordinator may be the third voter: with it and the primary gone there is no majority.
        two_voters = kind == "coordinator_and_power_off" and "coordinator" in (self.bench.field("witness", "voters") or [])
        undo = getattr(self, kind)()
        try:
            if kind in self.TAKES_OVER and not two_voters:
                wait_until(lambda: self.witness.host() != host, 30, f"{kind}: somebody takes over from {host}")
            else:
                time.sleep(0.5)
        finally:
            undo()
        wait_until(lambda: len(self.witness.told_lines()) > before + 100, 30, f"{kind}: it goes on")
        lines = self.witness.told_lines()[max(0, before - 1):]
        problem = self.check(lines) or self.clients.problem()
        if problem:
            self.end_clients()
        gap = max((b[0] - a[0]) / 1e6 for a, b in zip(lines, lines[1:]))
        changes = [(a, b) for a, b in zip(lines, lines[1:]) if a[1] != b[1]]
        lost = max([a[2] - b[2] + 1 for a, b in changes] or [0]) * self.witness.period_us / 1000
        self.results.append({"kind": kind, "gap_ms": gap, "lost_ms": lost, "takeovers": len(changes), "problem": problem})
        return self.results[-1]

    def end_clients(self):
        if self.clients is None:
            return
        try:
            told = self.clients.finish() if self.clients.problem() is None else self.clients.process.kill()
        except subprocess.TimeoutExpired:
            told = self.clients.process.kill()
        if told:
            self.records, self.longest = self.records + told[0], max(self.longest, told[1])
        self.clients = None

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
            # (The same machine may have had to begin again from a checkpoint.)
            if i and lines[i - 1][1] == host and count > lines[i - 1][2] + 1:
                return f"{host} skips from {lines[i - 1][2]} to {count}"
            if i and lines[i - 1][1] != host and count > lines[i - 1][2] + 1:
                return f"{host} goes on at {count} after {lines[i - 1][2]}"
        return None

    def save(self, path):
        if path:
            with open(path + ".new", "w", encoding="utf-8") as f:
                json.dump({"results": self.results, "records": self.records, "longest_ms": self.longest}, f, indent=1)
            os.replace(path + ".new", path)

    def run(self, injections, until, out=None):
        kinds = []
        while self.done < injections and time.monotonic() < until:
            if not kinds:
                kinds = list(self.KINDS)
                if "voter_from_backup" in kinds and self.random.random() < 0.7:   # takes long
                    kinds.remove("voter_from_backup")
                self.random.shuffle(kinds)
            kind = kinds.pop()
            try:
                result = self.inject(kind)
            except AssertionError as e:
                result = {"kind": kind, "gap_ms": None, "lost_ms": None, "takeovers": 0, "problem": str(e)[:300]}
                self.results.append(result)
                self.end_clients()
                self.bench.vecu("heal")
                self.bench.vecu("start", "coordinator")
                for machine in NODES:
                    self.bench.call("node", "resume", machine)
                    self.bench.vecu("start", machine)
            self.done += 1
            print(f"{self.done}: {json.dumps(result)}", flush=True)
            self.save(out)
            if result["problem"]:
                self.bench.logs(60)


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def plot(path, title, unit, series):
    """An empirical distribution per name, as SVG: share of the injections over the value, logarithmic."""
    width, height, left, top = 640, 300, 50, 30
    values = [max(v, 1) for of in series.values() for v in of] or [1]
    least, most = math.log10(min(values)), math.log10(max(values)) + 0.05
    x = lambda v: left + (math.log10(max(v, 1)) - least) / max(most - least, 0.1) * (width - left - 150)
    y = lambda share: top + (1 - share) * (height - top - 40)
    colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
           f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="16">{title}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line x1="{left}" x2="{width - 150}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.2f}</text>')
    for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000):
        if least <= math.log10(tick) <= most:
            out.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{y(0):.1f}" stroke="#eee"/>'
                       f'<text x="{x(tick):.1f}" y="{y(0) + 15:.1f}" text-anchor="middle">{tick}</text>')
    out.append(f'<text x="{width - 150}" y="{y(0) + 30:.1f}" text-anchor="end">{unit}</text>')
    for i, (name, of) in enumerate(series.items()):
        colour, ordered = colours[i % len(colours)], sorted(of)
        points, before = [], 0.0
        for n, v in enumerate(ordered, 1):
            points += [f"{x(v):.1f},{y(before):.1f}", f"{x(v):.1f},{y(n / len(ordered)):.1f}"]
            before = n / len(ordered)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(points)}"/>'
                   f'<text x="{width - 142}" y="{top + 12 + 15 * i}" fill="{colour}">{name} ({len(of)})</text>')
    with open(path, "w", encoding="ascii") as f:
        f.write("\n".join(out + ["</svg>"]) + "\n")


def plots(results, folder):
    def series(key):
        out = {}
        for kind in Campaign.KINDS:
            of = [r[key] for r in results if r["kind"] == kind and r["takeovers"] and r[key] is not None]
            if kind in Campaign.TAKES_OVER and of:
                out[kind.replace("_", " ")] = of
        return out
    plot(f"{folder}/reliability-rto.svg", "How long nobody ran (RTO), where a standby took over", "ms", series("gap_ms"))
    plot(f"{folder}/reliability-rpo.svg", "How much was told again (RPO), where a standby took over", "ms", series("lost_ms"))


def table(results, mode, records, longest_ms):
    failures = sum(1 for r in results if r["problem"])
    bound = 3.0 / len(results) if failures == 0 else None
    clients = ["Clients outside lost answers or connections: see the failures."] if any("client" in (r["problem"] or "") for r in results) else [
        f"Clients outside had {records} records answered under output commit over the whole campaign, none of them forgotten by a takeover"
        f" and no connection broken; their longest silence was {longest_ms:.0f} ms."] if records else []
    out = [f"{len(results)} injections, mode {mode}; {failures} failures" +
           (f": at most {bound * 100:.2f} % with 95 % confidence (rule of three)." if bound else "."), "",
           *clients, *([""] if clients else []),
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


def conclude(args, results, records, longest_ms):
    text = table(results, args.mode, records, longest_ms)
    print(text)
    if args.table:
        begin, end = "<!-- campaign: begin -->", "<!-- campaign: end -->"
        with open(args.table, encoding="utf-8") as f:
            document = f.read()
        plots(results, os.path.dirname(os.path.abspath(args.table)))
        head, tail = document.split(begin)[0], document.split(end)[1]
        with open(args.table, "w", encoding="utf-8") as f:
            f.write(head + begin + "\n" + text + "\n" + end + tail)
    return 1 if any(r["problem"] for r in results) else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?")
    parser.add_argument("--of", nargs="+", metavar="FILE", help="no injections: the results of earlier runs (--out) into --table")
    parser.add_argument("--injections", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1e9, help="no new injection after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", choices=("hot", "warm"), default="hot")
    parser.add_argument("--only", help="kinds of faults, separated by commas")
    parser.add_argument("--out", help="the results as JSON, written after each injection")
    parser.add_argument("--table")
    args = parser.parse_args()
    if args.of:
        told = []
        for name in args.of:
            with open(name, encoding="utf-8") as f:
                told.append(json.load(f))
        return conclude(args, [r for one in told for r in one["results"]], sum(one["records"] for one in told),
                        max(one["longest_ms"] for one in told))
    if os.geteuid() != 0:
        print("SKIPPED: root, to make virtual ECUs")
        return 77
    if args.only:
        Campaign.KINDS = args.only.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))   # takes its machines down
    campaign = Campaign(args.build, args.mode, args.seed)
    try:
        campaign.run(args.injections, time.monotonic() + 60 * args.minutes, args.out)
    finally:
        campaign.end_clients()
        campaign.save(args.out)
        campaign.bench.down()
    return conclude(args, campaign.results, campaign.records, campaign.longest)


if __name__ == "__main__":
    sys.exit(main())
