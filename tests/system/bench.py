"""A bench of virtual ECUs for a test: brings it up and down, types `baton` and
`vecu`, starts tracees and asks them to verify themselves.

A test file is a program: `test_x.py BUILD_DIR [unittest's options]`. It exits
with 77, and says what is missing, where it cannot run.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VECU = TOP + "/deploy/vecu"
BUILD = TOP + "/build/release"

DONE, FAILED, USAGE, NOT_FOUND, NO_COORDINATOR, NOT_ALLOWED, TIMED_OUT = range(7)


def skip(missing):
    print(f"SKIPPED: {missing}", flush=True)
    sys.exit(77)


def wait_until(condition, timeout_s, what):
    """The first true answer of `condition`; asks often, never just sleeps it out."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s} s still not: {what}")
        time.sleep(0.02)


class Bench:
    def __init__(self, nodes=3, *options):
        self.dir = tempfile.mkdtemp(prefix="baton-bench-", dir="/var/tmp")
        self.shared = tempfile.mkdtemp(prefix="baton-test-", dir="/tmp")      # all machines see it
        os.chmod(self.shared, 0o755)
        try:
            self.vecu("up", "--nodes", str(nodes), "--build", BUILD, *options, timeout=180)
        except BaseException:
            self.down()
            raise

    def down(self):
        subprocess.run([VECU, "down", "--dir", self.dir], stdin=subprocess.DEVNULL, check=False, timeout=120)
        shutil.rmtree(self.dir, ignore_errors=True)
        shutil.rmtree(self.shared, ignore_errors=True)

    def vecu(self, verb, *args, timeout=120, expect=0):
        done = subprocess.run([VECU, verb, "--dir", self.dir, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        if done.returncode != expect:
            raise AssertionError(f"vecu {verb} {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def call(self, *args, timeout=120, env=None):
        """`baton ARGS` as the bench's operator; whatever comes of it."""
        return subprocess.run([self.dir + "/bin/baton", *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
                              env={**os.environ, **(env or {})})

    def baton(self, *args, timeout=120, expect=DONE, env=None):
        """The same, which must end with `expect`. JSON where there is any, else the text."""
        if "--" in args:
            at = args.index("--")
            args = args[:at] + ("--output", "json") + args[at:]
        else:
            args += ("--output", "json")
        done = self.call(*args, timeout=timeout, env=env)
        if done.returncode != expect:
            raise AssertionError(f"baton {' '.join(args)}: exit {done.returncode}, not {expect}\n{done.stdout}{done.stderr}")
        if expect != DONE:
            if not done.stderr.strip():
                raise AssertionError(f"baton {' '.join(args)}: exit {expect} without a message")
            return done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def exec(self, machine, *command, timeout=60, check=True):
        done = subprocess.run([VECU, "exec", "--dir", self.dir, machine, "--", *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"in {machine}: {' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start_in(self, machine, *command, **options):
        return subprocess.Popen([VECU, "exec", "--dir", self.dir, machine, "--", *command], stdin=subprocess.DEVNULL, **options)

    def show(self, name):
        return self.baton("show", name)

    def field(self, name, key):
        return find(self.show(name), key)

    def arm(self, machine, faults):
        """Sets the fault points of a machine (`up --faults`); empty text disarms."""
        path = f"{self.dir}/{machine}/log/faults"
        with open(path + ".new", "w", encoding="ascii") as f:
            f.write(faults)
        os.chmod(path + ".new", 0o644)
        os.rename(path + ".new", path)

    def processes(self, machine, pattern):
        """PIDs, as the machine numbers them, of programs whose command line contains `pattern`."""
        script = ("import os,sys\n"
                  "for p in filter(str.isdigit, os.listdir('/proc')):\n"
                  "  try: line = open(f'/proc/{p}/cmdline','rb').read().replace(b'\\0', b' ').decode()\n"
                  "  except OSError: continue\n"
                  "  if sys.argv[1] in line and int(p) != os.getpid(): print(p)\n")
        return [int(p) for p in self.exec(machine, "/usr/bin/python3", "-c", script, pattern).split()]

    def logs(self, lines=25):
        for folder, _, files in sorted(os.walk(self.dir)):
            if os.path.basename(folder) != "log":
                continue
            for name in sorted(files):
                with open(f"{folder}/{name}", errors="replace", encoding="utf-8") as f:
                    tail = f.readlines()[-lines:]
                print(f"--- {folder}/{name}\n" + "".join(tail), file=sys.stderr)


def find(value, key):
    """A field of a JSON answer, wherever it stands in it."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            if isinstance(item, (dict, list)):
                found = find(item, key)
                if found is not None:
                    return found
    return None


def text_of(path):
    with open(path, errors="replace", encoding="utf-8") as f:
        return f.read()


class Workload:
    """A program that Baton runs and whose stdout goes to a file that every machine sees.

    Not for a program that prints all the time: a file that changes while the target
    compares it with its own is refused. Such a program opens its file for each line
    anew (counter).
    """

    def __init__(self, bench, name, command, *options, node="ecu1"):
        self.bench, self.name = bench, name
        self.output = f"{bench.shared}/{name}.out"
        open(self.output, "w", encoding="ascii").close()
        os.chmod(self.output, 0o666)
        bench.baton("run", name, "--node", node, *options, "--", "/bin/sh", "-c", f'exec "$@" >>{self.output} 2>&1', "sh", *command)

    def lines(self):
        return text_of(self.output).splitlines()

    def wait_line(self, wanted, count=1, timeout_s=60):
        def look():
            lines = self.lines()
            failed = [x for x in lines if x.startswith("FAILED")]
            if failed:
                raise AssertionError(f"{self.name}: {failed}")
            return sum(x == wanted for x in lines) >= count
        wait_until(look, timeout_s, f"{self.name} prints {wanted!r} {count} times; it ends with {self.lines()[-3:]}")

    def ready(self):
        self.wait_line("ready")
        return self

    def place(self):
        shown = self.bench.show(self.name)
        return find(shown, "node"), find(shown, "pid")

    def voted(self, timeout_s=60):
        """Its voters decide by now: it goes on by itself when its node is lost."""
        wait_until(lambda: len(self.bench.field(self.name, "voters") or []) == 3, timeout_s, f"{self.name} has three voters")
        return self

    def goes_on(self, node, timeout_s=60):
        """A failover has brought it there."""
        def look():
            shown = self.bench.show(self.name)
            return find(shown, "node") == node and find(shown, "state") == "running" and not find(shown, "stale")
        wait_until(look, timeout_s, f"{self.name} runs on {node}")
        return self

    def verify(self, timeout_s=60):
        """The program verifies itself, wherever it runs now."""
        before = sum(x == "ok" for x in self.lines())
        node, pid = self.place()
        self.bench.exec(node, "kill", "-USR1", str(pid))
        self.wait_line("ok", before + 1, timeout_s)

    def migrate(self, to, *options, timeout=180):
        report = self.bench.baton("migrate", self.name, "--to", to, *options, timeout=timeout)
        node, _ = self.place()
        if node != to:
            raise AssertionError(f"{self.name} is on {node} after a migration to {to}")
        for key in ("pause_us", "total_ms", "bytes_sent", "pages_sent", "pages_known", "rounds", "strategy"):
            if find(report, key) is None:
                raise AssertionError(f"the report of a migration lacks {key}: {report}")
        return report

    def committed(self):
        return int(self.bench.field(self.name, "last_committed") or 0)

    def wait_commit(self, after=0, timeout_s=60):
        return wait_until(lambda: (seq := self.committed()) > after and seq, timeout_s, f"{self.name} commits a checkpoint after {after}")

    def delete(self):
        self.bench.baton("delete", self.name, "--yes")

    def count(self, everywhere):
        """How many processes of it run on those machines: those that hold its output open, and do not stand
        still for good as the shadow of a standby does (a freeze for a checkpoint is over at the next look)."""
        script = ("import os,sys,time\nn=0\n"
                  "def still(p): return open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[0] == 't'\n"
                  "def shadow(p):\n"
                  "  for _ in range(4):\n"
                  "    if not still(p): return False\n"
                  "    time.sleep(0.03)\n"
                  "  return True\n"
                  "for p in filter(str.isdigit, os.listdir('/proc')):\n"
                  "  try:\n"
                  "    if os.readlink(f'/proc/{p}/fd/1') == sys.argv[1] and not shadow(p): n += 1\n"
                  "  except OSError: pass\n"
                  "print(n)\n")
        return sum(int(self.bench.exec(m, "/usr/bin/python3", "-c", script, self.output)) for m in everywhere)


class Case(unittest.TestCase):
    """One bench for all tests of a class; its logs are shown when a test fails."""
    nodes = 3
    up_options = ()
    bench = None

    @classmethod
    def setUpClass(cls):
        cls.bench = Bench(cls.nodes, *cls.up_options)
        cls.addClassCleanup(cls.bench.down)

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            self.bench.logs()
            for name in sorted(os.listdir(self.bench.shared)):
                if name.endswith(".out"):
                    print(f"--- {name}\n" + text_of(f"{self.bench.shared}/{name}")[-2000:], file=sys.stderr)

    def start(self, name, command, *options, node="ecu1"):
        workload = Workload(self.bench, name, command, *options, node=node)

        def end():
            self.bench.call("delete", name, "--yes")
        self.addCleanup(end)
        return workload


def tracee(name):
    return f"{BUILD}/bin/tracees/{name}"


class Sampler(unittest.TestLoader):
    """Every N-th test of a file (BATON_TEST_SAMPLE=N): where it begins is chosen by the number of
    the last commit, so that N commits in a row run all of them."""

    def loadTestsFromModule(self, module, *args, **options):
        parts = int(os.environ["BATON_TEST_SAMPLE"])
        count = subprocess.run(["git", "-C", TOP, "rev-list", "--count", "HEAD"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
        tests = []

        def flatten(suite):
            for item in suite:
                if isinstance(item, unittest.TestSuite):
                    flatten(item)
                else:
                    tests.append(item)
        flatten(super().loadTestsFromModule(module, *args, **options))
        chosen = tests[int(count or 0) % parts::parts]
        print(f"a sample of {len(chosen)} of {len(tests)} tests: " + " ".join(t.id().removeprefix("__main__.") for t in chosen), flush=True)
        return self.suiteClass(chosen)


def main():
    global BUILD
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        BUILD = os.path.realpath(sys.argv.pop(1))
    if os.geteuid() != 0:
        skip("root, to make virtual ECUs")
    try:
        with open("/proc/self/mountinfo", encoding="ascii") as f:
            if " - cgroup2 " not in f.read():
                skip("a mounted cgroup v2")
    except OSError:
        skip("/proc")
    if not os.path.exists("/proc/self/timens_offsets"):
        skip("time namespaces")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))       # ctest's time limit: clean up
    loader = Sampler() if os.environ.get("BATON_TEST_SAMPLE") else unittest.defaultTestLoader
    unittest.main(module="__main__", verbosity=2, testLoader=loader)
