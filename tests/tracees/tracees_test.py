#!/usr/bin/python3
"""Each tracee alone: it gets ready, verifies itself, survives being stopped and
continued, and notices when its memory is changed under it.

usage: tracees_test.py BIN_DIR
"""
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BIN = ""


def next_line(process, timeout_s=30):
    line = b""
    deadline = time.monotonic() + timeout_s
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"nothing more after {line!r}")
        byte = os.read(process.stdout.fileno(), 1)
        if not byte:
            raise AssertionError(f"it ended after {line!r} with {process.wait()}")
        line += byte
    return line.decode().strip()


class Alone(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="baton-tracees-")
        self.addCleanup(shutil.rmtree, self.folder)

    def start(self, name, *options):
        process = subprocess.Popen([f"{BIN}/{name}", *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)

        def end():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
            process.stdout.close()
        self.addCleanup(end)
        self.assertEqual(next_line(process), "ready")
        return process

    def verified(self, process, name):
        process.send_signal(signal.SIGUSR1)
        while (line := next_line(process)).startswith("count "):
            pass
        self.assertEqual(line, "ok", name)

    def test_every_tracee_verifies_itself(self):
        tracees = {"threads": (), "mappings": (), "churn": (), "counter": (), "descriptors": (self.folder,), "signals": (), "tree": (), "generator.py": (),
                   "registers": (), "events": (), "pending": (), "clocks": (), "files": ("--dir", self.folder), "writer": ("--mib", "8", "--pages", "50")}
        for name, options in tracees.items():
            with self.subTest(name):
                process = self.start(name, *options)
                self.verified(process, name)
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(0.05)
                os.kill(process.pid, signal.SIGCONT)
                self.verified(process, name)
                os.killpg(process.pid, signal.SIGKILL)

    def test_changed_memory_is_noticed(self):
        for name, options in {"writer": ("--mib", "8", "--pages", "1"), "mappings": ()}.items():
            with self.subTest(name):
                process = self.start(name, *options)
                with open(f"/proc/{process.pid}/maps", encoding="ascii") as maps:
                    rows = [line.split() for line in maps]
                anonymous = [r for r in rows if len(r) == 5 and r[1] == "rw-p"]
                sizes = [[int(x, 16) for x in r[0].split("-")] for r in anonymous]
                if name == "writer":
                    start = max(sizes, key=lambda s: s[1] - s[0])[0]
                else:
                    start = [s[0] for s in sizes if s[1] - s[0] == 8192][20]
                with open(f"/proc/{process.pid}/mem", "r+b", buffering=0) as memory:
                    memory.seek(start + 4096 + 808)
                    word = struct.unpack("Q", memory.read(8))[0]
                    memory.seek(start + 4096 + 808)
                    memory.write(struct.pack("Q", word ^ 1))
                process.send_signal(signal.SIGUSR1)
                line = next_line(process)
                self.assertTrue(line.startswith("FAILED: "), line)

    def test_writer_answers_on_its_port(self):
        import socket
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.start("writer", "--mib", "4", "--pages", "10", "--interval-us", "1000", "--bind", "127.0.0.1", "--port", str(port))
        steps = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.connect(("127.0.0.1", port))
            for _ in range(2):
                asking.send(b"?")
                answer = asking.recv(100).decode()
                self.assertIn(" errors=0", answer)
                steps.append(int(answer.split()[0].removeprefix("step=")))
                time.sleep(0.1)
        self.assertGreater(steps[1], steps[0])

    def test_pipeline_output_is_the_same_twice(self):
        outputs = []
        for i in range(2):
            path = f"{self.folder}/out{i}"
            process = subprocess.Popen([f"{BIN}/pipeline.sh", "2000", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
            self.assertEqual(next_line(process), "done")
            os.killpg(process.pid, signal.SIGKILL)        # it stays, for whoever moves it about
            process.wait()
            process.stdout.close()
            with open(path, "rb") as f:
                outputs.append(f.read())
        self.assertEqual(outputs[0], outputs[1])
        self.assertGreater(len(outputs[0]), 100)


if __name__ == "__main__":
    BIN = sys.argv.pop(1)
    unittest.main()
