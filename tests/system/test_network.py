#!/usr/bin/python3
"""Workloads with an address of their own: reached from the bench's network, moved with
their TCP connections, refused where the address is taken."""
import os
import time

from bench import BUILD, Case, FAILED, find, main, text_of, tracee, wait_until

PORT = "7500"


class Clients:
    """`stream ask` on the operator's machine: COUNT connections, each with its hash chain."""

    def __init__(self, case, address, count):
        self.case = case
        self.stop_file = f"{case.bench.shared}/stop-{time.monotonic_ns()}"
        self.out = f"{case.bench.shared}/clients-{time.monotonic_ns()}.out"
        with open(self.out, "w", encoding="ascii") as out:
            self.process = case.bench.start_in("operator", tracee("stream"), "ask", address, PORT, str(count), self.stop_file, stdout=out)
        case.addCleanup(self.process.kill)
        wait_until(lambda: "connected" in self.text(), 30, "the clients connect")

    def text(self):
        with open(self.out, encoding="ascii") as f:
            text = f.read()
        if "FAILED" in text:
            raise AssertionError(f"a client: {text}")
        return text

    def finish(self):
        """Records answered, and the longest time without any answer, in ms."""
        with open(self.stop_file, "w", encoding="ascii"):
            pass
        self.process.wait(timeout=60)
        words = self.text().split()
        if self.process.returncode != 0 or words[-3] != "ok":
            raise AssertionError(f"the clients ended with {self.process.returncode}: {words}")
        return int(words[-2]), float(words[-1])


class Network(Case):
    nodes = 3

    def serve(self, name, address, *options):
        return self.start(name, [tracee("stream"), "serve", "0.0.0.0", PORT], "--address", f"{address}/24", *options).ready()

    def reach(self, machine, address, expect=True):
        code = ("import socket,sys\ns=socket.socket(); s.settimeout(1)\n"
                f"try: s.connect(('{address}', {PORT})); print('reached')\nexcept OSError as e: print(e)\n")
        said = self.bench.exec(machine, "/usr/bin/python3", "-c", code)
        self.assertEqual("reached" in said, expect, f"{address} from {machine}: {said}")

    def test_stream_lives_through_migrations(self):
        server = self.serve("stream", "10.77.0.50", "--tcp", "established", "--standby", "ecu2")
        clients = Clients(self, "10.77.0.50", 4)
        pauses = []
        for to in ("ecu2", "ecu1"):
            pauses.append(find(server.migrate(to), "pause_us") / 1000)
            server.verify()
        records, longest = clients.finish()
        self.assertGreater(records, 100)
        print(f"4 connections, 2 migrations: {records} records, longest silence {longest:.0f} ms, pauses {pauses} ms")
        # A retransmission timeout would add 200 ms at least.
        self.assertLess(longest, max(pauses) + 190)

    # Sends a counted stream to whoever connects, no faster than the kernel lets it: at every moment something waits to be sent.
    PACED = ("import socket, struct\n"
             "s = socket.create_server(('0.0.0.0', %s))\n"
             "print('ready', flush=True)\n"
             "while True:\n"
             "  c, _ = s.accept()\n"
             "  c.setsockopt(socket.SOL_SOCKET, 47, struct.pack('Q', 3000000))\n"     # SO_MAX_PACING_RATE
             "  n = 0\n"
             "  try:\n"
             "    while True:\n"
             "      c.sendall(b''.join(b'%%08d' %% (n + i) for i in range(1000)))\n"
             "      n += 1000\n"
             "  except OSError: c.close()\n" % PORT)

    def read_paced(self, address):
        """Reads it, as an outside client; answers how to ask for how much has been read, and for the longest gap in seconds."""
        reader = f"{self.bench.shared}/reader-{address}"
        with open(reader, "w", encoding="ascii"):
            pass
        code = ("import os, socket, sys, time\n"
                f"c = socket.create_connection(('{address}', {PORT}), 10)\n"
                "c.settimeout(30); n, left, worst, last = 0, b'', 0, time.monotonic()\n"
                "while True:\n"
                "  data = c.recv(65536)\n"
                "  now = time.monotonic(); worst = max(worst, now - last); last = now\n"
                "  if not data: sys.exit('closed')\n"
                "  left += data\n"
                "  for at in range(0, len(left) - 7, 8):\n"
                "    if int(left[at:at + 8]) != n: sys.exit(f'{left[at:at + 8]} instead of {n}')\n"
                "    n += 1\n"
                "  left = left[len(left) // 8 * 8:]\n"
                f"  open('{reader}.new', 'w').write(f'{{n}} {{worst}}\\n')\n"
                f"  os.rename('{reader}.new', '{reader}')\n")
        client = self.bench.start_in("operator", "/usr/bin/python3", "-c", code)

        def end():
            client.kill()
            client.wait()
        self.addCleanup(end)

        def look(which, kind):
            self.assertIsNone(client.poll(), "the reader has ended")
            words = text_of(reader).split()
            return kind(words[which]) if len(words) == 2 else kind(0)
        wait_until(lambda: look(0, int) > 1000, 20, "it reads")
        return lambda: look(0, int), lambda: look(1, float)

    def test_what_waits_to_be_sent_goes_on_from_the_other_node(self):
        server = self.start("paced", ["/usr/bin/python3", "-S", "-E", "-c", self.PACED], "--address", "10.77.0.58/24", "--tcp", "established").ready()
        count, gap = self.read_paced("10.77.0.58")
        for number in range(8):
            server.migrate("ecu2" if number % 2 == 0 else "ecu1")
            before = count()
            wait_until(lambda: count() > before + 100_000, 20, "it reads on")
        print(f"the longest gap: {gap() * 1000:.0f} ms", flush=True)

    def test_what_waits_to_be_sent_goes_on_after_a_power_off(self):
        server = self.start("paced-held", ["/usr/bin/python3", "-S", "-E", "-c", self.PACED], "--address", "10.77.0.59/24", "--tcp", "established",
                            "--output-commit", "--mode", "hot", "--interval", "10ms", "--standby", "ecu2").ready()
        server.wait_commit(5)
        server.voted()
        count, gap = self.read_paced("10.77.0.59")
        self.bench.vecu("kill", "ecu1")
        self.addCleanup(self.bench.vecu, "start", "ecu1")
        server.goes_on("ecu2")
        before = count()
        wait_until(lambda: count() > before + 50_000, 60, "it reads on")
        print(f"the longest gap: {gap() * 1000:.0f} ms", flush=True)

    def test_address_is_reached_from_everywhere_and_goes_with_the_workload(self):
        server = self.serve("reached", "10.77.0.51", "--tcp", "close")
        for machine in ("operator", "ecu1", "ecu2"):
            self.reach(machine, "10.77.0.51")
        server.migrate("ecu3")
        for machine in ("operator", "ecu1", "ecu3"):
            self.reach(machine, "10.77.0.51")
        server.delete()
        self.reach("operator", "10.77.0.51", expect=False)

    def test_address_in_use_is_refused(self):
        self.serve("first", "10.77.0.52")
        for node, owner in (("ecu1", "first"), ("ecu2", "in use")):
            message = self.bench.baton("run", "second", "--node", node, "--address", "10.77.0.52/24", "--", "/bin/sleep", "100", expect=FAILED)
            self.assertIn("10.77.0.52" if owner == "in use" else owner, message)

    def test_warden_restart_leaves_the_network_alone(self):
        server = self.serve("kept", "10.77.0.53", "--tcp", "established")
        clients = Clients(self, "10.77.0.53", 2)
        self.bench.vecu("kill-warden", "ecu1")
        self.bench.vecu("start", "ecu1")
        server.wait_commit(server.committed())
        server.migrate("ecu2")
        records, _ = clients.finish()
        self.assertGreater(records, 10)

    def test_output_commit_delays_by_about_a_checkpoint(self):
        def ping(address):
            said = self.bench.exec("operator", tracee("stream"), "ping", address, PORT, "300", timeout=120).split()
            self.assertEqual(said[0], "ok", said)
            return [int(x) for x in said[1:]]
        self.serve("plain-answers", "10.77.0.60", "--tcp", "established", "--standby", "ecu2")
        print(f"answer without output commit: p50, p99, max {ping('10.77.0.60')} us")
        for interval in ("5ms", "20ms", "50ms"):
            address = f"10.77.0.{61 + ('5ms', '20ms', '50ms').index(interval)}"
            self.serve(f"held-{interval}", address, "--output-commit", "--standby", "ecu2", "--interval", interval, "--durability", "memory")
            p50, p99, longest = ping(address)
            print(f"answer with output commit, interval {interval}: p50, p99, max {[p50, p99, longest]} us")
            self.assertLess(p50, 100_000)

    def test_output_commit_lives_through_a_power_off(self):
        server = self.serve("safe", "10.77.0.54", "--output-commit", "--standby", "ecu2", "--interval", "20ms", "--durability", "memory")
        server.wait_commit(10)
        clients = Clients(self, "10.77.0.54", 4)
        server.wait_commit(server.committed() + 20)
        self.bench.vecu("kill", "ecu1")
        try:
            wait_until(lambda: self.bench.call("failover", "safe", "--to", "ecu2", timeout=30).returncode == 0 or server.place()[0] == "ecu2", 60,
                       "ecu2 takes over")
            server.verify()
            records, longest = clients.finish()
        finally:
            self.bench.vecu("start", "ecu1")
        self.assertGreater(records, 100)
        print(f"power off with output commit: {records} records, every connection unbroken, longest silence {longest:.0f} ms")

    def test_connection_without_an_address_is_refused_by_name(self):
        server = self.start("plain", [tracee("stream"), "serve", "0.0.0.0", PORT], "--tcp", "established").ready()
        clients = Clients(self, "10.77.0.11", 1)
        message = self.bench.baton("migrate", "plain", "--to", "ecu2", expect=FAILED)
        self.assertIn("--address", message)
        clients.finish()
        server.verify()


if __name__ == "__main__":
    main()
