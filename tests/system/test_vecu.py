#!/usr/bin/python3
"""The bench itself, without Baton's programs: machines that are separate, silent
when they lose power, keep their disks, and links that are cut, slow and healed."""
import json
import os
import signal
import subprocess
import time

from bench import Bench, Case, main, wait_until

UDP = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if sys.argv[1] == "serve":
    s.bind(("", 4999))
    print("serving", flush=True)
    while True:
        data, peer = s.recvfrom(2000)
        s.sendto(data, peer)
s.settimeout(float(sys.argv[4]))
s.connect((sys.argv[2], 4999))
times = []
for i in range(int(sys.argv[3])):
    start = time.monotonic()
    try:
        s.send(b"%d" % i)
        while s.recv(99) != b"%d" % i:
            pass
        times.append(time.monotonic() - start)
    except OSError:
        pass
times.sort()
print(len(times), times[len(times) // 2] * 1000 if times else -1)
"""


class Vecu(Case):
    nodes = 2
    up_options = ("--no-programs",)

    def setUp(self):
        self.script = self.bench.shared + "/udp.py"
        with open(self.script, "w", encoding="ascii") as f:
            f.write(UDP)

    def serve(self, machine):
        process = self.bench.start_in(machine, "/usr/bin/python3", self.script, "serve", stdout=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), b"serving\n")

        def end():
            process.terminate()
            process.wait()
            process.stdout.close()
        self.addCleanup(end)

    def ping(self, machine, address, count=5, wait_s=0.3):
        """(answers, median round trip in ms)"""
        answered, median = self.bench.exec(machine, "/usr/bin/python3", self.script, "ask", address, str(count), str(wait_s)).split()
        return int(answered), float(median)

    def test_machines_are_separate(self):
        kinds = ["net", "pid", "mnt", "uts", "ipc", "time", "cgroup"]
        seen = {}
        for machine in ("ecu1", "ecu2", "coordinator"):
            links = self.bench.exec(machine, "readlink", *[f"/proc/self/ns/{k}" for k in kinds]).split()
            for kind, link in zip(kinds, links):
                self.assertNotEqual(link, os.readlink(f"/proc/self/ns/{kind}"))
                self.assertNotIn(link, seen.setdefault(kind, []))
                seen[kind].append(link)
            self.assertEqual(self.bench.exec(machine, "hostname").strip(), machine)
        clocks = {m: float(self.bench.exec(m, "/usr/bin/python3", "-c", "import time; print(time.monotonic())")) for m in ("ecu1", "ecu2")}
        self.assertGreater(abs(clocks["ecu1"] - clocks["ecu2"]), 1000)
        self.assertGreater(abs(clocks["ecu1"] - time.monotonic()), 1000)
        self.assertNotIn("vecu up", self.bench.exec("ecu1", "ps", "ax"))

    def test_disks_are_separate_and_outlive_power_off_while_tmp_is_common(self):
        self.bench.exec("ecu1", "/bin/sh", "-c", "echo mine >/root/of-ecu1; echo x >/etc/made-by-test")
        self.assertFalse(os.path.exists("/root/of-ecu1"))
        self.assertEqual(self.bench.exec("ecu2", "/bin/sh", "-c", "cat /root/of-ecu1 2>&1 || true").count("No such file"), 1)
        self.assertEqual(self.bench.exec("ecu1", "ls", self.bench.dir), "", "it sees the bench's own folder, with everybody's keys")
        self.bench.exec("ecu2", "touch", self.bench.shared + "/common")
        self.assertTrue(os.path.exists(self.bench.shared + "/common"))
        self.bench.vecu("kill", "ecu1")
        self.bench.vecu("start", "ecu1")
        self.assertEqual(self.bench.exec("ecu1", "cat", "/root/of-ecu1"), "mine\n")

    def test_power_off_ends_all_processes_and_sends_nothing(self):
        listener = ("import socket,sys\ns=socket.create_server(('',4998)); print('ready',flush=True)\n"
                    "c,_=s.accept(); c.settimeout(2)\n"
                    "try: print('got',c.recv(9),flush=True)\n"
                    "except TimeoutError: print('silence',flush=True)\n"
                    "except OSError as e: print('got',e,flush=True)\n")
        server = self.bench.start_in("ecu2", "/usr/bin/python3", "-c", listener, stdout=subprocess.PIPE)
        self.assertEqual(server.stdout.readline(), b"ready\n")
        # The client sits in a PID namespace of its own, as a workload does.
        client = self.bench.start_in("ecu1", "unshare", "--pid", "--fork", "--mount-proc", "/usr/bin/python3", "-c",
                                     "import socket,time\ns=socket.create_connection(('10.77.0.12',4998))\nprint('connected',flush=True)\ntime.sleep(999)", stdout=subprocess.PIPE)
        self.assertEqual(client.stdout.readline(), b"connected\n")
        self.bench.vecu("kill", "ecu1")
        self.addCleanup(self.bench.vecu, "start", "ecu1")
        self.assertEqual(client.wait(10), 137)
        self.assertEqual(server.stdout.readline(), b"silence\n")
        server.wait(10)
        client.stdout.close()
        server.stdout.close()
        self.bench.vecu("exec", "ecu1", "--", "true", expect=1)

    def test_cut_and_heal(self):
        self.serve("ecu2")
        self.serve("coordinator")
        self.assertEqual(self.ping("ecu1", "10.77.0.12")[0], 5)
        self.bench.vecu("cut", "ecu1", "ecu2")
        self.assertEqual(self.ping("ecu1", "10.77.0.12", 2)[0], 0)
        self.assertEqual(self.ping("ecu1", "10.77.0.1")[0], 5)
        self.bench.vecu("heal")
        self.bench.vecu("cut", "ecu1")
        self.assertEqual(self.ping("ecu1", "10.77.0.12", 2)[0], 0)
        self.assertEqual(self.ping("ecu1", "10.77.0.1", 2)[0], 0)
        self.assertEqual(self.ping("coordinator", "10.77.0.12")[0], 5)
        self.bench.vecu("heal")
        self.assertEqual(self.ping("ecu1", "10.77.0.12")[0], 5)

    def test_one_way_cut_lets_the_other_direction_through(self):
        self.bench.vecu("cut", "ecu1", "ecu2", "--one-way")
        self.addCleanup(self.bench.vecu, "heal")
        script = ("import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('',4997)); s.settimeout(2); print('ready',flush=True)\n"
                  "try: print(s.recv(9).decode(),flush=True)\nexcept TimeoutError: print('nothing',flush=True)\n")
        for sender, receiver, wanted in (("ecu1", "ecu2", b"nothing\n"), ("ecu2", "ecu1", b"hello\n")):
            address = {"ecu1": "10.77.0.11", "ecu2": "10.77.0.12"}[receiver]
            mac = self.bench.exec(receiver, "cat", "/sys/class/net/eth0/address").strip()
            # Address resolution needs both directions: told instead.
            self.bench.exec(sender, "ip", "neigh", "replace", address, "lladdr", mac, "dev", "eth0")
            process = self.bench.start_in(receiver, "/usr/bin/python3", "-c", script, stdout=subprocess.PIPE)
            self.assertEqual(process.stdout.readline(), b"ready\n")
            self.bench.exec(sender, "/usr/bin/python3", "-c", f"import socket; socket.socket(socket.AF_INET,socket.SOCK_DGRAM).sendto(b'hello',('{address}',4997))")
            self.assertEqual(process.stdout.readline(), wanted)
            process.wait(10)
            process.stdout.close()
            self.bench.exec(sender, "ip", "neigh", "flush", "dev", "eth0")

    def test_slow_delays_loses_and_heals(self):
        self.serve("ecu2")
        self.bench.vecu("slow", "ecu1", "--delay", "20ms")
        answered, median = self.ping("ecu1", "10.77.0.12", 10)
        self.assertEqual(answered, 10)
        self.assertGreaterEqual(median, 40)
        self.bench.vecu("slow", "ecu1", "--loss", "30%")
        answered, _ = self.ping("ecu1", "10.77.0.12", 100, 0.05)
        self.assertTrue(20 < answered < 80, f"{answered} of 100 answered; (1-0.3)² of them should")
        self.bench.vecu("slow", "ecu1", "--rate", "400kbit")
        asked = ("import socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.connect(('10.77.0.12',4999)); s.settimeout(5)\n"
                 "start=time.monotonic()\nfor i in range(60):\n  s.send(bytes(1000)); s.recv(2000)\nprint(time.monotonic()-start)\n")
        # 62 kB, of which 16 may pass at once, at 50 kB/s: 0.9 s.
        self.assertGreater(float(self.bench.exec("ecu1", "/usr/bin/python3", "-c", asked)), 0.6)
        self.bench.vecu("heal")
        answered, median = self.ping("ecu1", "10.77.0.12", 20)
        self.assertEqual(answered, 20)
        self.assertLess(median, 20)

    def test_exec_passes_exit_codes_on(self):
        for command, code in ((("/bin/sh", "-c", "exit 7"), 7), (("/bin/sh", "-c", "kill -9 $$"), 137), (("/no/such/program",), 127)):
            self.bench.vecu("exec", "ecu1", "--", *command, expect=code)

    def test_bad_requests_are_refused(self):
        for args in (("kill", "ecu9"), ("cut", "ecu1", "ecu1"), ("slow", "ecu1"), ("slow", "ecu1", "--rate", "fast"), ("slow", "ecu1", "--loss", "200%"),
                     ("start", "ecu1", "--env", "X"), ("kill-warden", "ecu1"), ("up",)):
            self.bench.vecu(*args, expect=1)

    def test_second_bench_with_the_same_addresses_beside_it(self):
        other = Bench(1, "--no-programs")
        try:
            self.assertEqual(other.exec("ecu1", "hostname").strip(), "ecu1")
            self.assertEqual(other.exec("ecu1", "/bin/sh", "-c", "ls /root/of-ecu1 2>/dev/null || true"), "")
        finally:
            other.down()
        self.assertFalse(os.path.exists(other.dir))
        self.assertEqual(self.bench.exec("ecu1", "hostname").strip(), "ecu1")

    def test_down_clears_a_bench_whose_switchboard_was_killed(self):
        other = Bench(1, "--no-programs")
        with open(other.dir + "/state.json", encoding="ascii") as f:
            state = json.load(f)
        os.kill(state["switchboard"], signal.SIGKILL)
        other.vecu("status", expect=1)
        other.vecu("down")
        other.vecu("down")
        self.assertFalse(os.path.exists(other.dir))
        wait_until(lambda: not os.path.exists(f"/proc/{state['machines']['ecu1']}/ns"), 10, "its machines are gone")
        with open("/proc/self/mountinfo", encoding="ascii") as f:
            self.assertNotIn(other.dir, f.read())
        other.down()


if __name__ == "__main__":
    main()
