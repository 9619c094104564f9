#!/usr/bin/python3
"""Ordinary daemons under load, at an address of their own: moved there and back, and taken over
when their node is switched off. Every answer is verified by a client that knows what was
acknowledged (daemons.py)."""
import json
import subprocess
import time

import daemons
from bench import VECU, Case, main, wait_until

ADDRESS = "10.77.0.60"


class Daemons(Case):
    def driver(self, name, port):
        kind = next(x for x in daemons.ALL if x.name == name)
        missing = kind(self.bench.shared, port).missing()
        if missing:
            self.skipTest(f"needs: {', '.join(missing)} (deploy/install-deps --daemons)")
        process = subprocess.Popen([VECU, "exec", "--dir", self.bench.dir, "operator", "--", "/usr/bin/python3", daemons.__file__,
                                    "--drive", name, self.bench.shared, str(port), ADDRESS],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def end():
            process.kill()
            process.wait(30)
        self.addCleanup(end)
        return process

    def ask(self, process, word):
        process.stdin.write(word + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        self.assertTrue(line, f"the load has ended at {word}")
        answer = json.loads(line)
        self.assertIsNone(answer.get("wrong"), answer)
        return answer

    def more(self, process, count=10, timeout_s=60):
        before = self.ask(process, "look")["good"]
        wait_until(lambda: self.ask(process, "look")["good"] >= before + count, timeout_s, f"{count} more good answers: {self.ask(process, 'look')}")

    def put_to_use(self, name, port, moves, *options, tcp="close", how=()):
        process = self.driver(name, port)
        made = json.loads(process.stdout.readline())
        user = ["--user", made["user"]] if made["user"] else []
        self.bench.baton("run", name, "--node", "ecu1", "--standby", "ecu2", "--address", f"{ADDRESS}/24", "--tcp", tcp,
                         "--interval", "50ms", *user, *options, "--", *made["command"], timeout=180)
        self.addCleanup(lambda: self.bench.call("delete", name, "--yes"))
        time.sleep(2)     # it comes up
        wait_until(lambda: "trouble" not in self.ask(process, "begin"), 60, f"{name} answers")
        self.more(process, 3)
        for number in range(moves):
            self.bench.baton("migrate", name, "--to", "ecu2" if number % 2 == 0 else "ecu1", *how, timeout=180)
            self.more(process, 3)
        return process

    def end(self, process):
        answer = self.ask(process, "end")
        self.assertNotIn("trouble", answer)

    def test_postgres_under_load_moves_five_times(self):
        process = self.put_to_use("postgres", 17201, 5)
        self.end(process)

    def test_nginx_moves_and_is_taken_over(self):
        process = self.put_to_use("nginx", 17202, 2, "--mode", "warm")
        wait_until(lambda: len(self.bench.field("nginx", "voters") or []) == 3, 60, "three voters")
        node = self.bench.field("nginx", "node")
        self.bench.vecu("kill", node)
        try:
            self.more(process)
        finally:
            self.bench.vecu("start", node)
        self.end(process)

    def connected(self, name, port, *options):
        """Ten moves in a row; no client sees an error or has to connect again."""
        process = self.put_to_use(name, port, 10, *options, tcp="established", how=["--with-files"])
        answer = self.ask(process, "look")
        self.assertEqual(answer["reconnects"], 0, answer)
        self.end(process)


def connected_test(name, port):
    def test(self):
        self.connected(name, port)
    return test


for index, kind in enumerate(daemons.ALL):
    setattr(Daemons, f"test_{kind.name.replace('-', '_')}_moves_ten_times_with_clients_connected", connected_test(kind.name, 17210 + index))


if __name__ == "__main__":
    main()
