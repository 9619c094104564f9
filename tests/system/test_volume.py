#!/usr/bin/python3
"""Files that go with a program (--volume): after a move, a failover and a restore they are what the
program has in memory, to the byte."""
import os
import shutil
import time

from bench import Case, find, main, skip, text_of, wait_until
from failover import hot_events

HERE = os.path.dirname(os.path.abspath(__file__))
LEDGER = os.path.join(os.path.dirname(HERE), "tracees", "ledger.py")


class Volume(Case):
    def ledger(self, name, *options, folder="/data", node="ecu1"):
        workload = self.start(name, ["/usr/bin/python3", f"{self.bench.shared}/ledger.py", folder], "--volume", folder, *options, node=node)
        workload.wait_line("ready")
        workload.verify()
        return workload

    def setUp(self):
        shutil.copy(LEDGER, f"{self.bench.shared}/ledger.py")
        for node in ("ecu1", "ecu2", "ecu3"):
            self.bench.exec(node, "rm", "-rf", "/data", "/other")

    def test_moves_there_and_back_with_its_files(self):
        workload = self.ledger("moves", "--mode", "warm", "--standby", "ecu2", "--interval", "50ms", "--verify")
        for to in ("ecu2", "ecu3", "ecu1"):
            workload.wait_commit(workload.committed())
            workload.migrate(to)
            workload.verify()
            # This node's own programs see the same files.
            seen = self.bench.exec(to, "tail", "-n", "1", "/data/log").split()
            self.assertEqual(len(seen), 2)
        time.sleep(0.5)
        workload.verify()
        self.assertEqual(self.bench.field("moves", "problem") or "", "")      # --verify: every capture was compared with the frozen files

    def test_hot_standby_takes_over_with_the_files_of_the_same_instant(self):
        workload = self.ledger("takeover", "--mode", "hot", "--standby", "ecu2", "--interval", "20ms")
        wait_until(lambda: hot_events(self.bench, "takeover"), 60, "it has a hot standby")
        workload.voted()
        workload.wait_commit(workload.committed())
        for victim, heir in (("ecu1", "ecu2"), ("ecu2", None)):
            self.bench.vecu("kill", victim)
            wait_until(lambda: workload.place()[0] not in (victim, ""), 60, f"it goes on after {victim}")
            if heir:
                workload.goes_on(heir)
            workload.verify()
            time.sleep(0.5)
            workload.verify()
            self.bench.vecu("start", victim)
            wait_until(lambda: self.bench.baton("node", "show", victim)["state"] == "ready", 60, f"{victim} is back")
            workload.voted()
            wait_until(lambda: any(c.get("connected") for c in self.bench.show("takeover").get("standby_copies") or []), 60, "it has a standby")
            workload.wait_commit(workload.committed() + 5)

    def test_its_server_killed_the_standby_takes_over(self):
        workload = self.ledger("served", "--mode", "hot", "--standby", "ecu2", "--interval", "20ms", "--on-exit", "failover")
        wait_until(lambda: hot_events(self.bench, "served"), 60, "it has a hot standby")
        workload.voted()
        workload.wait_commit(workload.committed() + 3)
        (server,) = self.bench.processes("ecu1", "baton-volume /")
        self.bench.exec("ecu1", "kill", "-9", str(server))
        workload.goes_on("ecu2")
        workload.verify()
        left = self.bench.exec("ecu1", "sh", "-c", "grep -c baton: /proc/self/mounts; true").strip()
        self.assertEqual(left, "0")

    def test_restored_from_a_kept_checkpoint(self):
        workload = self.ledger("kept", "--mode", "cold", "--standby", "ecu2", "--interval", "200ms")
        seq = workload.wait_commit(workload.committed() + 2)
        self.bench.baton("restore", f"kept@{seq}", "--to", "ecu2", "--as", "copy")
        self.addCleanup(lambda: self.bench.call("delete", "copy", "--yes"))
        # Its output is the original's: both verify, and neither finds the other's writes.
        before = sum(x == "ok" for x in workload.lines())
        self.bench.exec("ecu2", "kill", "-USR1", str(find(self.bench.show("copy"), "pid")))
        workload.wait_line("ok", before + 1)
        workload.verify()

    def test_what_was_there_is_found_and_what_was_written_stays(self):
        self.bench.exec("ecu1", "mkdir", "-p", "/other/deep")
        self.bench.exec("ecu1", "sh", "-c", "echo before > /other/deep/note; chown 1234:77 /other/deep/note; chmod 604 /other/deep/note")
        workload = self.start("finds", ["/bin/sh", "-c", "echo ready; cat /other/deep/note; echo after > /other/new; trap 'echo ok' USR1; while :; do sleep 0.1; done"],
                              "--volume", "/other", "--standby", "ecu2", "--interval", "100ms", "--mode", "warm")
        workload.wait_line("before")
        workload.wait_commit(workload.committed())
        workload.migrate("ecu2")
        self.assertEqual(self.bench.exec("ecu2", "stat", "-c", "%u:%g %a", "/other/deep/note").strip(), "1234:77 604")
        self.assertEqual(self.bench.exec("ecu2", "cat", "/other/new").strip(), "after")
        workload.delete()
        # It ended on ecu2: there the folder holds what the program left; on ecu1 what was there before.
        self.assertEqual(self.bench.exec("ecu2", "cat", "/other/deep/note", "/other/new").split(), ["before", "after"])
        self.assertEqual(self.bench.exec("ecu1", "ls", "/other").split(), ["deep"])
        left = self.bench.exec("ecu2", "sh", "-c", "grep -c baton: /proc/self/mounts; true").strip()
        self.assertEqual(left, "0")

    def test_refusals_name_what_and_why(self):
        for bad, word in (("relative", "absolute"), ("/", "/"), ("/proc/x", "/proc")):
            message = self.bench.baton("run", "bad", "--node", "ecu1", "--volume", bad, "--", "/bin/sleep", "1", expect=2)
            self.assertIn(word, message)
        pid = self.bench.exec("ecu1", "sh", "-c", "sleep 300 >/dev/null 2>&1 </dev/null & echo $!").strip()
        self.addCleanup(self.bench.exec, "ecu1", "kill", pid)
        result = self.bench.call("protect", "late", "--node", "ecu1", "--pid", pid, "--volume", "/data")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("volume", result.stderr)

    def test_redis_finds_its_append_only_file_as_it_remembers(self):
        if not shutil.which("redis-server"):
            self.skipTest("needs: redis-server (deploy/install-deps)")
        workload = self.start("aof", ["/usr/bin/redis-server", "--port", "0", "--unixsocket", "/data/aof.sock", "--save", "", "--appendonly", "yes",
                                      "--appendfsync", "always", "--dir", "/data"],
                              "--volume", "/data", "--mode", "hot", "--standby", "ecu2", "--interval", "20ms", "--external-unix", "close")
        cli = ["redis-cli", "-s", "/data/aof.sock"]
        wait_until(lambda: "PONG" in self.bench.exec("ecu1", "sh", "-c", "redis-cli -s /data/aof.sock ping; true"), 30, "redis answers")
        self.bench.exec("ecu1", "sh", "-c", "for i in $(seq 300); do echo set key:$i value:$i; echo rpush list $i; done | redis-cli -s /data/aof.sock >/dev/null")
        wait_until(lambda: hot_events(self.bench, "aof"), 60, "it has a hot standby")
        workload.voted()
        workload.wait_commit(workload.committed() + 5)
        self.bench.vecu("kill", "ecu1")
        try:
            workload.goes_on("ecu2")
            # What it has in memory, and what another server reads from its file.
            remembered = self.bench.exec("ecu2", *cli, "dbsize").strip()
            listed = self.bench.exec("ecu2", *cli, "lrange", "list", "0", "-1")
            self.assertEqual(int(remembered.split()[-1]), 301)
            self.bench.exec("ecu2", "sh", "-c", "rm -rf /tmp/copy && cp -a /data /tmp/copy && (redis-server --port 0 --unixsocket /tmp/copy.sock --save '' "
                            "--appendonly yes --dir /tmp/copy --daemonize yes >/dev/null)")
            wait_until(lambda: "PONG" in self.bench.exec("ecu2", "sh", "-c", "redis-cli -s /tmp/copy.sock ping; true"), 30, "the other server answers")
            self.assertEqual(self.bench.exec("ecu2", "redis-cli", "-s", "/tmp/copy.sock", "dbsize").strip(), remembered)
            self.assertEqual(self.bench.exec("ecu2", "redis-cli", "-s", "/tmp/copy.sock", "lrange", "list", "0", "-1"), listed)
            self.bench.exec("ecu2", "redis-cli", "-s", "/tmp/copy.sock", "shutdown", "nosave")
        finally:
            self.bench.vecu("start", "ecu1")
            wait_until(lambda: self.bench.baton("node", "show", "ecu1")["state"] == "ready", 60, "ecu1 is back")

    def test_postgres_goes_on_with_its_database_after_its_node_was_switched_off(self):
        binaries = "/usr/lib/postgresql/15/bin"
        if not os.path.exists(binaries + "/postgres"):
            self.skipTest("needs: postgresql-15 (deploy/install-deps --daemons)")
        self.bench.exec("ecu1", "sh", "-c", f"rm -rf /pg && install -d -o postgres -m 700 /pg && runuser -u postgres -- {binaries}/initdb -D /pg/data -A trust >/dev/null",
                        timeout=300)
        self.addCleanup(lambda: [self.bench.exec(node, "rm", "-rf", "/pg", check=False) for node in ("ecu1", "ecu2", "ecu3")])
        workload = self.start("pg", [f"{binaries}/postgres", "-D", "/pg/data", "-k", "/pg", "-h", "", "-c", "shared_buffers=16MB", "-c", "max_connections=10",
                                     "-c", "autovacuum_naptime=10s"],
                              "--volume", "/pg", "--user", "postgres", "--mode", "hot", "--standby", "ecu2", "--interval", "50ms", "--external-unix", "close")

        def sql(node, text, host="/pg", check=True):
            return self.bench.exec(node, "runuser", "-u", "postgres", "--", "psql", "-h", host, "-At", "-c", text, "postgres", check=check).strip()
        wait_until(lambda: sql("ecu1", "select 1", check=False) == "1", 60, "postgres answers")
        sql("ecu1", "create table account (id int primary key, v int, note text); insert into account select i, 1000, repeat('x', i % 300) from generate_series(1, 5000) i")
        for i in range(20):
            sql("ecu1", f"begin; update account set v = v - {i} where id % 7 = 1; update account set v = v + {i} where id % 7 = 1; commit")
        sql("ecu1", "checkpoint")
        workload.voted()
        workload.wait_commit(workload.committed() + 3)
        before = sql("ecu1", "select sum(v), count(*), sum(length(note)) from account")
        self.bench.vecu("kill", "ecu1")
        try:
            workload.goes_on("ecu2")
            self.assertEqual(sql("ecu2", "select sum(v), count(*), sum(length(note)) from account"), before)
            sql("ecu2", "insert into account select i, 1000, 'later' from generate_series(5001, 5500) i")
            self.assertEqual(sql("ecu2", "select count(*) from account"), "5500")
            # Another server, from a copy of the files: they are whole by themselves.
            sql("ecu2", "checkpoint")
            self.bench.exec("ecu2", "sh", "-c", "rm -rf /tmp/pgcopy && cp -a /pg /tmp/pgcopy && rm -f /tmp/pgcopy/data/postmaster.pid && "
                            f"runuser -u postgres -- {binaries}/pg_ctl -D /tmp/pgcopy/data -o '-k /tmp/pgcopy -h \"\"' -w -l /tmp/pgcopy/log start >/dev/null", timeout=120)
            self.assertEqual(sql("ecu2", "select count(*), sum(v) from account", host="/tmp/pgcopy"), "5500|5500000")
            self.bench.exec("ecu2", "runuser", "-u", "postgres", "--", f"{binaries}/pg_ctl", "-D", "/tmp/pgcopy/data", "-m", "fast", "stop")
            self.bench.exec("ecu2", "rm", "-rf", "/tmp/pgcopy")
        finally:
            self.bench.vecu("start", "ecu1")
            wait_until(lambda: self.bench.baton("node", "show", "ecu1")["state"] == "ready", 60, "ecu1 is back")


if __name__ == "__main__":
    if not os.path.exists("/dev/fuse"):
        skip("/dev/fuse")
    main()
