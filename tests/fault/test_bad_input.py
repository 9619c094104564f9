#!/usr/bin/python3
"""What a person can ask wrongly: each gets its own message and exit code, and
a program that was meant runs on, untouched."""
import os
import struct
import subprocess

from bench import DONE, FAILED, NO_COORDINATOR, NOT_FOUND, USAGE, Case, main, tracee, wait_until


def i386_program():
    """An ELF file for a 32-bit processor that calls pause() for ever."""
    code = bytes.fromhex("b81d000000cd80ebf7")           # mov eax, 29 (pause); int 0x80; jmp back
    base, offset = 0x08048000, 0x54
    header = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + offset, 0x34, 0, 0, 0x34, 0x20, 1, 0, 0, 0)
    segment = struct.pack("<IIIIIIII", 1, 0, base, base, offset + len(code), offset + len(code), 5, 0x1000)
    return header + segment + code


class BadInput(Case):
    nodes = 2

    def refused(self, expect, *args, mentions=()):
        message = self.bench.baton(*args, expect=expect)
        for word in mentions:
            self.assertIn(word, message)
        return message

    def in_ecu1(self, *command):
        """Starts a program in ecu1 and gives its PID there."""
        marker = f"{self.bench.shared}/pid-{len(os.listdir(self.bench.shared))}"
        process = self.bench.start_in("ecu1", "/bin/sh", "-c", f'echo $$ >{marker}.new; mv {marker}.new {marker}; exec "$@"', "sh", *command, stdout=subprocess.DEVNULL)

        def end():       # strace holds back a polite signal
            for pid in {started, *self.bench.processes("ecu1", command[-1])}:
                self.bench.exec("ecu1", "kill", "-9", str(pid), check=False)
            process.wait(30)
        wait_until(lambda: os.path.exists(marker), 20, "the program starts")
        with open(marker, encoding="ascii") as f:
            started = int(f.read())
        self.addCleanup(end)
        return started

    def alive(self, pid):
        state = self.bench.exec("ecu1", "/bin/sh", "-c", f"cut -d' ' -f3 /proc/{pid}/stat").strip()
        self.assertIn(state, ("R", "S"), "the program is stopped or gone")

    def test_unknown_pid(self):
        self.refused(NOT_FOUND, "protect", "x", "--node", "ecu1", "--pid", "999999")
        self.refused(NOT_FOUND, "show", "x")

    def test_init_of_the_machine_is_refused(self):
        message = self.bench.call("protect", "x", "--node", "ecu1", "--pid", "1")
        self.assertNotEqual(message.returncode, DONE)
        self.assertTrue(message.stderr.strip())

    def test_traced_process_is_refused_and_stays_with_its_tracer(self):
        pid = self.in_ecu1("strace", "-f", "-o", "/dev/null", tracee("counter"))
        child = wait_until(lambda: [p for p in self.bench.processes("ecu1", tracee("counter")) if p != pid], 20, "strace starts it")[-1]
        self.refused(FAILED, "protect", "traced", "--node", "ecu1", "--pid", str(child), mentions=["traced"])
        tracer = self.bench.exec("ecu1", "grep", "TracerPid", f"/proc/{child}/status").split()[1]
        self.assertEqual(int(tracer), pid)

    def test_32_bit_process_is_refused(self):
        path = self.bench.shared + "/i386"
        with open(path, "wb") as f:
            f.write(i386_program())
        os.chmod(path, 0o755)
        try:
            ended = subprocess.run([path, "-"], stdin=subprocess.DEVNULL, check=False, preexec_fn=lambda: __import__("signal").alarm(1)).returncode
        except OSError:
            ended = None
        if ended != -14:
            self.skipTest("needs: a kernel that runs 32-bit programs")
        pid = self.in_ecu1(path)
        self.refused(FAILED, "protect", "small", "--node", "ecu1", "--pid", str(pid), mentions=["32-bit"])
        self.alive(pid)

    def test_unsupported_resource_is_refused_by_name_before_the_program_is_touched(self):
        pid = self.in_ecu1("/usr/bin/python3", "-c",
                           "import ctypes,time\nfd=ctypes.CDLL(None).syscall(425,8,(ctypes.c_char*120)())\nopen('/run/fd','w').write(str(fd))\n"
                           "while True: time.sleep(0.1)")
        wait_until(lambda: self.bench.exec("ecu1", "/bin/sh", "-c", "cat /run/fd 2>/dev/null || true"), 20, "the program has its ring")
        fd = self.bench.exec("ecu1", "cat", "/run/fd")
        if int(fd) < 0:
            self.skipTest("io_uring in this kernel")
        self.refused(FAILED, "protect", "ring", "--node", "ecu1", "--pid", str(pid), mentions=["io_uring", f"fd {fd}"])
        self.alive(pid)

    def test_names_flags_and_values_out_of_range(self):
        run = ("--", "/bin/sleep", "60")
        for args in (("run", "Bad_Name", *run), ("run", "x", "--interval", "-5ms", *run), ("run", "x", "--interval", "soon", *run), ("run", "x", "--mode", "tepid", *run),
                     ("run", "x", "--max-slowdown", "0.5", *run), ("run", "x", "--no-such-flag", *run), ("run", "x"), ("migrate", "x"),
                     ("nonsense",)):
            self.refused(USAGE, *args)
        self.refused(NOT_FOUND, "run", "x", "--node", "ecu9", *run)
        self.assertEqual(self.bench.call("show", "x").returncode, NOT_FOUND)

    def test_spec_files(self):
        path = self.bench.shared + "/spec.toml"

        def spec(text, expect, *mentions):
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            self.refused(expect, "apply", "-f", path, mentions=mentions)
        good = '[[workload]]\nname = "x"\ncommand = ["/bin/sleep", "60"]\n'
        spec(good + "intervall = \"20ms\"\n", USAGE, "intervall")
        spec(good + "mode = \"tepid\"\n", USAGE, "tepid")
        spec(good + "interval = \"1us\"\n", USAGE)
        spec("this is not toml", USAGE)
        spec('[[workload]]\nname = "x"\n', USAGE)
        self.assertEqual(self.bench.call("apply", "-f", self.bench.shared + "/missing.toml").returncode in (FAILED, USAGE, NOT_FOUND), True)
        self.assertEqual(self.bench.call("show", "x").returncode, NOT_FOUND)

    def test_name_taken_and_moves_that_make_no_sense(self):
        workload = self.start("taken", [tracee("counter"), "10000"], "--interval", "100ms").ready()
        self.refused(FAILED, "run", "taken", "--node", "ecu2", "--", "/bin/sleep", "60", mentions=["taken"])
        self.refused(USAGE, "migrate", "taken", "--to", "ecu1", mentions=["ecu1"])
        self.refused(NOT_FOUND, "migrate", "taken", "--to", "ecu9", mentions=["ecu9"])
        self.refused(NOT_FOUND, "migrate", "nobody", "--to", "ecu2", mentions=["nobody"])
        workload.verify()
        self.assertEqual(workload.count(["ecu1", "ecu2"]), 1)

    def test_file_missing_on_the_target_is_refused_by_path_or_sent(self):
        self.bench.exec("ecu1", "/bin/sh", "-c", "head -c 100000 /dev/urandom >/root/only-here")
        workload = self.start("reader", ["/usr/bin/python3", "-c", "import time\nf=open('/root/only-here','rb')\nf.read(10)\nprint('ready',flush=True)\nwhile True: time.sleep(0.05)"])
        workload.ready()
        self.refused(FAILED, "migrate", "reader", "--to", "ecu2", mentions=["/root/only-here"])
        self.assertEqual(workload.place()[0], "ecu1")
        dry = self.bench.call("migrate", "reader", "--to", "ecu2", "--dry-run", "--output", "json")
        self.assertIn("/root/only-here", dry.stdout + dry.stderr)

    def test_feature_that_no_node_has(self):
        message = self.bench.call("run", "x", "--require-features", "no_such_feature", "--", "/bin/sleep", "60")
        self.assertNotIn(message.returncode, (DONE, USAGE))
        self.assertIn("no_such_feature", message.stderr)

    def test_nobody_answers_where_the_coordinator_should_be(self):
        self.refused_env({"BATON_COORDINATOR": "10.77.0.99:7400"})
        self.refused_env({"BATON_COORDINATOR": "10.77.0.1:7"})

    def refused_env(self, env):
        self.bench.baton("node", "ls", expect=NO_COORDINATOR, env=env)


if __name__ == "__main__":
    main()
