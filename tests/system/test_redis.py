#!/usr/bin/python3
"""Debian's redis-server with a million keys goes ecu1 → ecu2 → ecu3 → ecu1 under
writes; every key that was acknowledged is there with its value after each hop."""
import os
import shutil
import socket
import threading
import time

from bench import Case, find, main, skip, wait_until

KEYS = int(os.environ.get("BATON_REDIS_KEYS", "1000000"))
PORT = 6390


class Client:
    """Enough of redis's protocol, spoken from the operator's network by a child that lives there."""

    def __init__(self, host):
        self.socket = socket.create_connection((host, PORT), timeout=10)
        self.file = self.socket.makefile("rb")

    def close(self):
        self.file.close()
        self.socket.close()

    def pipeline(self, commands):
        out = bytearray()
        for command in commands:
            out += b"*%d\r\n" % len(command)
            for part in command:
                part = part if isinstance(part, bytes) else str(part).encode()
                out += b"$%d\r\n%s\r\n" % (len(part), part)
        self.socket.sendall(out)
        return [self.reply() for _ in commands]

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.file.read(size + 2)[:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        raise ConnectionError(f"redis says {line!r}")


class Writer(threading.Thread):
    """Writes numbered keys and remembers each that redis acknowledged."""

    def __init__(self, where):
        super().__init__(daemon=True)
        self.where, self.acknowledged, self.stop = where, 0, threading.Event()
        self.attempted = 0

    def run(self):
        client = None
        while not self.stop.is_set():
            try:
                client = client or Client(self.where())
                batch = range(self.acknowledged, self.acknowledged + 50)
                self.attempted = batch.stop
                for answer in client.pipeline([("SET", f"w:{i}", f"written {i}") for i in batch]):
                    if answer == b"OK":
                        self.acknowledged += 1
                time.sleep(0.005)
            except (OSError, RuntimeError):
                if client:
                    client.close()
                client = None
                time.sleep(0.02)


class Redis(Case):
    def test_million_keys_round_trip_every_acknowledged_write_survives(self):
        # This process talks to the bench from the operator's network; everything else it does goes through child processes.
        import ctypes
        import json
        with open(self.bench.dir + "/state.json", encoding="ascii") as f:
            switch = json.load(f)["switchboard"]
        host_network = os.open("/proc/self/ns/net", os.O_RDONLY)
        bench_network = os.open(f"/proc/{switch}/ns/net", os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)
        self.assertEqual(libc.setns(bench_network, 0x40000000), 0)
        self.addCleanup(libc.setns, host_network, 0x40000000)

        workload = self.start("redis", ["/usr/bin/redis-server", "--bind", "0.0.0.0", "--port", str(PORT), "--save", "", "--appendonly", "no",
                                        "--protected-mode", "no", "--dir", self.bench.shared], "--tcp", "close", "--interval", "1s", "--standby", "ecu2")

        def host():
            return f"10.77.0.{10 + int(self.place[3:])}"
        self.place = "ecu1"

        def connect():
            try:
                return Client(host())
            except OSError:
                return None
        client = wait_until(connect, 30, "redis answers")
        for start in range(0, KEYS, 10000):
            client.pipeline([("SET", f"k:{i}", f"value {i}") for i in range(start, min(start + 10000, KEYS))])
        client.close()

        writer = Writer(host)
        writer.start()
        self.addCleanup(writer.stop.set)
        wait_until(lambda: writer.acknowledged > 1000, 30, "the writer writes")
        for to in ("ecu2", "ecu3", "ecu1"):
            before = writer.acknowledged
            report = workload.migrate(to)
            self.place = to
            wait_until(lambda: writer.acknowledged > before + 500, 60, f"writes go on after the move to {to}")
            print(f"redis to {to}: pause {find(report, 'pause_us')} us, {find(report, 'bytes_sent')} bytes, {writer.acknowledged} acknowledged writes", flush=True)
            client = wait_until(connect, 30, f"redis answers on {to}")
            acknowledged = writer.acknowledged
            self.check(client, "k", "value", KEYS)
            self.check(client, "w", "written", acknowledged)
            client.close()
        writer.stop.set()
        writer.join(20)

    def check(self, client, prefix, word, count):
        for start in range(0, count, 10000):
            numbers = range(start, min(start + 10000, count))
            answers = client.pipeline([("GET", f"{prefix}:{i}") for i in numbers])
            for i, answer in zip(numbers, answers):
                self.assertEqual(answer, f"{word} {i}".encode(), f"key {prefix}:{i}")


if __name__ == "__main__":
    if not shutil.which("redis-server"):
        skip("redis-server (deploy/install-deps)")
    main()
