#!/usr/bin/python3
"""Unix sockets to programs that stay behind: --external-unix refuse, reconnect, close.

Each node has a program of its own that listens at /run/outside.log (datagrams, as a system log
does) and /run/outside.bus (connections, as a message bus does) and writes down what it hears and
from whom; the workload speaks to both and says what became of them."""
import os

from bench import Case, FAILED, main, text_of, wait_until

OUTSIDE = r"""
import os, select, socket, struct, sys
log, bus = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)
for one, name in ((log, "/run/outside.log"), (bus, "/run/outside.bus")):
    if os.path.exists(name): os.unlink(name)
    one.bind(name)
    os.chmod(name, 0o666)
bus.listen(5)
out = open(sys.argv[1], "a", buffering=1)
print("listens", file=out)
clients = {}
while True:
    for one in select.select([log, bus, *clients], [], [])[0]:
        if one is log:
            print("log", log.recv(100).decode(), file=out)
        elif one is bus:
            client, _ = bus.accept()
            clients[client] = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            print("client of user", clients[client], file=out)
        else:
            said = one.recv(100).decode()
            if not said:
                del clients[one]
                one.close()
                continue
            print("bus", said, file=out)
            one.send(b"heard")
"""

PROGRAM = r"""
import errno, os, socket, time
log, bus = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)
log.connect("/run/outside.log")
os.setresuid(int(os.environ["AS"]), int(os.environ["AS"]), int(os.environ["AS"]))
bus.connect("/run/outside.bus")
bus.settimeout(2)
print("ready", flush=True)
last, n = None, 0
def tell(what):
    global last
    if what != last: print(what, flush=True)
    last = what
while True:
    n += 1
    time.sleep(0.05)
    try:
        log.send(b"%d" % n)
        logged = "logged"
    except OSError as e: logged = errno.errorcode[e.errno]
    try:
        bus.send(b"%d" % n, socket.MSG_NOSIGNAL)
        spoke = "heard" if bus.recv(10) == b"heard" else "ended"
    except OSError as e: spoke = errno.errorcode[e.errno]
    tell("log %s, bus %s" % (logged, spoke))
"""

# As a service manager starts a service: its output is a connection to the journal.
MANAGER = r"""
import socket, subprocess, sys
ours, theirs = socket.socketpair()
code = "import time; n = 0\nwhile True: n += 1; time.sleep(0.05); print('line', n, flush=True)"
child = subprocess.Popen(["/usr/bin/python3", "-c", code], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True)
print(child.pid, file=open(sys.argv[1], "w"))
while ours.recv(4096): pass
"""


class ExternalUnix(Case):
    nodes = 2

    def setUp(self):
        for node in ("ecu1", "ecu2"):
            self.bench.exec(node, "/bin/sh", "-c", f": >{self.heard(node)}")
            process = self.bench.start_in(node, "/usr/bin/python3", "-c", OUTSIDE, self.heard(node))
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            wait_until(lambda node=node: "listens" in text_of(self.heard(node)), 30, f"the program outside listens on {node}")

    def heard(self, node):
        return f"{self.bench.shared}/heard-{node}"

    def speak(self, name, *options, user="0"):
        return self.start(name, ["/usr/bin/env", f"AS={user}", "/usr/bin/python3", "-c", PROGRAM], *options).ready()

    def hears(self, node, what):
        wait_until(lambda: any(line.startswith(what) for line in text_of(self.heard(node)).splitlines()), 30, f"{node} hears {what!r}")

    def test_reconnect_speaks_to_the_new_nodes_own(self):
        workload = self.speak("talker", "--external-unix", "reconnect", "--standby", "ecu2", user="1234")
        workload.wait_line("log logged, bus heard")
        self.assertNotIn("log", text_of(self.heard("ecu2")))
        workload.migrate("ecu2")
        for what in ("log ", "client of user 1234", "bus "):
            self.hears("ecu2", what)
        self.assertEqual(workload.lines()[-1], "log logged, bus heard")

    def test_reconnect_where_nobody_listens_is_found_closed(self):
        workload = self.speak("lonely", "--external-unix", "reconnect")
        workload.wait_line("log logged, bus heard")
        self.bench.exec("ecu2", "/bin/rm", "/run/outside.log", "/run/outside.bus")
        workload.migrate("ecu2")
        wait_until(lambda: "log ENOTCONN, bus EPIPE" in workload.lines(), 30, f"both are found closed; it says {workload.lines()[1:]}")

    def test_close_is_found_closed(self):
        workload = self.speak("closed", "--external-unix", "close")
        workload.wait_line("log logged, bus heard")
        workload.migrate("ecu2")
        wait_until(lambda: "log ENOTCONN, bus EPIPE" in workload.lines(), 30, f"both are found closed; it says {workload.lines()[1:]}")
        self.assertIn("log ECONNREFUSED", " ".join(workload.lines()), "the first datagram finds that nobody is there")
        self.assertNotIn("bus", text_of(self.heard("ecu2")))

    def test_refuse_names_the_socket_and_the_program_runs_on(self):
        workload = self.speak("kept")
        workload.wait_line("log logged, bus heard")
        told = self.bench.baton("migrate", "kept", "--to", "ecu2", expect=FAILED)
        self.assertIn("/run/outside.", told)
        self.assertIn("--external-unix", told)
        self.assertEqual(workload.place()[0], "ecu1")
        self.assertEqual(workload.lines()[-1], "log logged, bus heard")

    def test_output_to_a_service_manager_becomes_the_log(self):
        place = f"{self.bench.shared}/service-pid"
        manager = self.bench.start_in("ecu1", "/usr/bin/python3", "-c", MANAGER, place)
        self.addCleanup(manager.wait)
        self.addCleanup(manager.kill)
        pid = wait_until(lambda: os.path.exists(place) and text_of(place).strip(), 30, "the service starts")
        self.bench.baton("protect", "service", "--node", "ecu1", "--pid", pid)
        self.addCleanup(lambda: self.bench.call("delete", "service", "--yes"))
        self.bench.baton("migrate", "service", "--to", "ecu2")
        wait_until(lambda: "line" in self.bench.call("logs", "service").stdout, 30, "its output is in the log")

    def test_hot_standby_reconnects_when_it_takes_over(self):
        workload = self.speak("heir", "--external-unix", "reconnect", "--mode", "hot", "--standby", "ecu2")
        workload.wait_line("log logged, bus heard")
        workload.voted()
        wait_until(lambda: any(e["kind"] == "standby" and "hot at" in e["text"] for e in self.bench.baton("events") if e["workload"] == "heir"), 60, "its standby is hot")
        self.assertNotIn("client", text_of(self.heard("ecu2")), "a shadow speaks to nobody")
        self.bench.vecu("kill", "ecu1")
        try:
            workload.goes_on("ecu2")
            for what in ("log ", "client of user 0", "bus "):
                self.hears("ecu2", what)
        finally:
            self.bench.vecu("start", "ecu1")


if __name__ == "__main__":
    main()
