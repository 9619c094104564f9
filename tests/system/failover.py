"""What tests of failovers share: a witness that tells who runs, and what its lines prove."""
from bench import Workload, tracee, wait_until

PERIOD_US = 2000


class Witness(Workload):
    """tests/tracees/witness.cc: every line is "WALL_NS HOST COUNT"; the wall clock is one for all machines."""

    def __init__(self, bench, name, *options, node="ecu1", period_us=PERIOD_US):
        self.told = f"{bench.shared}/{name}.witness"
        self.period_us = period_us
        self.told_so_far, self.read_to = [], 0
        super().__init__(bench, name, [tracee("witness"), self.told, str(period_us)], *options, node=node)

    def told_lines(self):
        """(wall_ns, host, count), as far as they are whole. The file only grows: what was read stays read."""
        try:
            with open(self.told, "rb") as f:
                f.seek(self.read_to)
                text = f.read()
        except FileNotFoundError:
            return []
        whole = text[:text.rfind(b"\n") + 1]
        self.read_to += len(whole)
        for line in whole.decode("ascii").splitlines():
            wall, host, count = line.split()
            self.told_so_far.append((int(wall), host, int(count)))
        return self.told_so_far

    def host(self):
        lines = self.told_lines()
        return lines[-1][1] if lines else None

    def runs_on(self, node, timeout_s=20):
        def look():
            lines = self.told_lines()
            return len(lines) > 5 and all(host == node for _, host, _ in lines[-5:])
        wait_until(look, timeout_s, f"{self.name} tells of itself on {node}; last: {self.told_lines()[-2:]}")
        return self

    def attributed(self):
        """The lines, each with the host that wrote it. A checkpoint taken between reading the clock and writing the line
        is restored with both the old time and the old host in hand: its first line is the restored program's all the same,
        and its next line says so."""
        lines = list(self.told_lines())
        for i in range(1, len(lines) - 1):
            (w0, h0, _), (wall, host, count), (_, after, following) = lines[i - 1:i + 2]
            if host == h0 and wall < w0 and after != host and following == count + 1:
                lines[i] = (wall, after, count)
        return lines

    def changes(self):
        """Each change of hosts: (from, to, gap in ms, numbers told again)."""
        lines = self.attributed()
        out = []
        for i, ((w0, h0, c0), (w1, h1, c1)) in enumerate(zip(lines, lines[1:])):
            if h0 != h1:
                first = w1 if w1 > w0 or i + 2 >= len(lines) else lines[i + 2][0]
                out.append((h0, h1, (first - w0) / 1e6, c0 - c1 + 1))
        return out

    def prove(self, case, most_lost_ms=None):
        """Never two at once; nothing skipped; after a takeover it goes on from at most `most_lost_ms` before."""
        lines = self.attributed()
        # Written by O_APPEND in the order in which they happened: hosts come in stretches, wall clocks never go back.
        # A line is written after its time was read: two instances in turn would interleave.
        latest = {}
        for i, (wall, host, count) in enumerate(lines):
            # The first line after a takeover may bear an old time: the checkpoint was taken between reading the
            # clock and writing the line.
            if i and lines[i - 1][1] == host:
                case.assertGreaterEqual(wall, lines[i - 1][0] - 2_000_000, f"line {i} of {self.name} is from before its predecessor: two run at once")
            if host in latest and i and lines[i - 1][1] == host:
                case.assertEqual(count, latest[host] + 1, f"line {i} of {self.name}: it skips or repeats a number on {host}")
            latest[host] = count
        for before, after, gap_ms, again in self.changes():
            case.assertGreaterEqual(again, 0, f"{self.name}: {before} -> {after} skips {-again} numbers")
            if most_lost_ms is not None:
                case.assertLessEqual(again * self.period_us / 1000, most_lost_ms, f"{self.name}: {before} -> {after} lost {again} numbers")
        return self.changes()


def hot_events(bench, name):
    return [e["text"] for e in bench.baton("events") if e["workload"] == name and e["kind"] == "standby" and "hot at" in e["text"]]


def protected(bench, witness, voters=3, timeout_s=60):
    """Three vote, the standby stands ready, checkpoints are committed."""
    def look():
        shown = bench.show(witness.name)
        votes = shown.get("voters") or []
        copies = shown.get("standby_copies") or []
        return len(votes) == voters and any(c.get("connected") for c in copies) and shown.get("tenure") == "held"
    wait_until(look, timeout_s, f"{witness.name} has {voters} voters and a standby in step")
    witness.wait_commit(witness.committed() + 5)
    return witness
