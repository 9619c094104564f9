#!/usr/bin/python3
"""producer | xz | consumer, three processes and two pipes, moved while it works:
its output is byte for byte that of an undisturbed run."""
import hashlib
import os
import signal
import subprocess

from bench import Case, main, tracee, wait_until

LINES = 60000


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


class Pipeline(Case):
    nodes = 3

    def test_pipeline_moved_twice_output_identical(self):
        undisturbed = self.bench.shared + "/undisturbed.xz"
        process = subprocess.Popen([tracee("pipeline.sh"), str(LINES), undisturbed], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        self.assertEqual(process.stdout.readline(), b"done\n")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()

        moved = self.bench.shared + "/moved.xz"
        workload = self.start("pipeline", [tracee("pipeline.sh"), str(LINES), moved], "--interval", "200ms")
        wait_until(lambda: os.path.exists(moved) and os.path.getsize(moved) > 0, 30, "the pipeline writes")
        moves = 0
        for to in ("ecu2", "ecu3", "ecu1"):
            if "done" in workload.lines():
                break
            workload.migrate(to)
            moves += 1
        self.assertGreaterEqual(moves, 2, "the pipeline ended before it could be moved twice")
        workload.wait_line("done", timeout_s=120)
        self.assertEqual(digest(moved), digest(undisturbed))
        self.assertEqual(subprocess.run(["xz", "-dc", moved], capture_output=True, check=True).stdout.count(b"\n"), LINES)


if __name__ == "__main__":
    main()
