"""Ordinary daemons of Debian and what puts them to use: each Daemon has a command, and a load
that keeps verifying every answer, from outside, over connections it makes again when a move
resets them (--tcp close). Wrong answers count; broken connections do not.

By hand, without a bench: daemons.py BUILD_DIR [NAME…] moves each of them through the linux
backend alone (baton-zoo exec).
"""
import hashlib
import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time


class Load(threading.Thread):
    """Calls `turn(connection)` again and again; it raises AssertionError for a wrong answer."""

    def __init__(self, connect, turn):
        super().__init__(daemon=True)
        self.connect, self.turn = connect, turn
        self.good, self.reconnects, self.wrong = 0, 0, None
        self.stop = threading.Event()

    def run(self):
        connection = None
        while not self.stop.is_set() and self.wrong is None:
            try:
                connection = connection or self.connect()
                self.turn(connection)
                self.good += 1
            except AssertionError as e:
                self.wrong = str(e)
            except Exception as e:  # the connection went with the move, or its library says so
                self.last = repr(e)
                self.reconnects += 1
                try:
                    connection and connection.close()
                except Exception:
                    pass
                connection = None
                time.sleep(0.02)


def equal(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what}: {got!r:.200}, not {wanted!r:.200}")


class Daemon:
    name = None
    needs = ()
    options = ()
    user = None

    def __init__(self, folder, port):
        self.folder, self.port = f"{folder}/{self.name}-{port}", port
        os.makedirs(self.folder, exist_ok=True)
        os.chmod(self.folder, 0o755)
        self.host = "127.0.0.1"
        self.loads = []

    def missing(self):
        return [x for x in self.needs if not (os.path.exists(x) or shutil.which(x) or importlib.util.find_spec(x))]

    def path(self, name):
        return f"{self.folder}/{name}"

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(text)
        return self.path(name)

    def prepare(self):
        """Writes what the daemon needs into its folder; the command."""
        raise NotImplementedError

    def start_load(self):
        """Threads of load, running."""
        self.loads = [Load(self.connect, self.turn)]
        for load in self.loads:
            load.start()

    def wrong(self):
        return next((x.wrong for x in self.loads if x.wrong), None)

    def good(self):
        return sum(x.good for x in self.loads)

    def stop_load(self):
        for load in self.loads:
            load.stop.set()
        for load in self.loads:
            load.join(30)

    def final_check(self):
        pass


class Nginx(Daemon):
    name, needs = "nginx", ("nginx",)

    def prepare(self):
        body = bytes(i * 7 % 251 for i in range(65536)) * 16
        with open(self.path("file"), "wb") as f:
            f.write(body)
        self.digest = hashlib.sha256(body).hexdigest()
        temporary = "".join(f"{kind}_temp_path {self.folder}/tmp; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        conf = self.write("nginx.conf", f"""
user root; daemon off; master_process on; worker_processes 2; pid {self.folder}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{ access_log off; {temporary} keepalive_timeout 60; sendfile on;
  server {{ listen {self.port}; root {self.folder}; }} }}
""")
        return ["/usr/sbin/nginx", "-p", self.folder, "-c", conf]

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=10)

    def turn(self, connection):
        connection.request("GET", "/file")
        answer = connection.getresponse()
        equal(answer.status, 200, "status")
        body = answer.read()
        equal(hashlib.sha256(body).hexdigest(), self.digest, "checksum")


class Memcached(Daemon):
    name, needs = "memcached", ("memcached",)

    def prepare(self):
        self.next = 0
        return ["/usr/bin/memcached", "-u", "root", "-l", "0.0.0.0", "-p", str(self.port), "-U", "0", "-t", "4", "-m", "64"]

    def connect(self):
        return socket.create_connection((self.host, self.port), timeout=10)

    def ask(self, connection, text):
        connection.sendall(text)
        answer = b""
        while not (answer.endswith(b"STORED\r\n") or answer.endswith(b"END\r\n")):
            part = connection.recv(65536)
            if not part:
                raise ConnectionError("closed")
            answer += part
        return answer

    def value(self, number):
        return f"value {number} ".encode() * (number % 40 + 1)

    def turn(self, connection):
        number = self.next
        value = self.value(number)
        answer = self.ask(connection, b"set k%d 0 0 %d\r\n%s\r\n" % (number, len(value), value))
        equal(answer, b"STORED\r\n", "set")
        self.next += 1
        for old in {number // 2, number // 3, number}:
            value = self.value(old)
            equal(self.ask(connection, b"get k%d\r\n" % old), b"VALUE k%d 0 %d\r\n%s\r\nEND\r\n" % (old, len(value), value), f"get k{old}")


class Mosquitto(Daemon):
    """Retained messages are the broker's memory: each acknowledged one must be there afterwards."""
    name, needs = "mosquitto", ("/usr/sbin/mosquitto",)

    def prepare(self):
        self.next = 0
        conf = self.write("mosquitto.conf", f"listener {self.port} 0.0.0.0\nallow_anonymous true\npersistence false\nuser root\n")
        return ["/usr/sbin/mosquitto", "-c", conf]

    @staticmethod
    def packet(kind, body):
        size, length = len(body), bytearray()
        while True:
            length.append(size % 128 | (128 if size >= 128 else 0))
            size //= 128
            if size == 0:
                return bytes([kind]) + bytes(length) + body

    @staticmethod
    def text(value):
        value = value.encode()
        return len(value).to_bytes(2, "big") + value

    def read(self, file):
        kind = file.read(1)
        if not kind:
            raise ConnectionError("closed")
        size = shift = 0
        while True:
            byte = file.read(1)[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return kind[0], file.read(size)

    def connect(self):
        connection = socket.create_connection((self.host, self.port), timeout=10)
        connection.sendall(self.packet(0x10, self.text("MQTT") + bytes([4, 2, 0, 0]) + self.text("")))
        file = connection.makefile("rb")
        equal(self.read(file)[0], 0x20, "CONNACK")
        file.socket = connection
        return file

    def turn(self, file):
        number = self.next
        body = self.text(f"t/{number % 500}") + (number % 60000 + 1).to_bytes(2, "big") + f"message {number}".encode()
        file.socket.sendall(self.packet(0x33, body))   # QoS 1, retained
        kind, got = self.read(file)
        equal((kind, got[:2]), (0x40, (number % 60000 + 1).to_bytes(2, "big")), "PUBACK")
        self.next += 1

    def final_check(self):
        file = self.connect()
        file.socket.sendall(self.packet(0x82, b"\0\1" + self.text("t/#") + b"\0"))
        newest = {i % 500: i for i in range(self.next)}
        found = {}
        while len(found) < len(newest):
            kind, body = self.read(file)
            if kind & 0xf0 != 0x30:
                continue
            size = int.from_bytes(body[:2], "big")
            found[int(body[2:2 + size].decode()[2:])] = body[2 + size:].decode()
        for topic, number in newest.items():
            # The one under way when a connection broke may have arrived unacknowledged.
            if found[topic] not in (f"message {number}", f"message {self.next}"):
                raise AssertionError(f"topic {topic}: {found[topic]}, not message {number}")


class WebStore(Daemon):
    """HTTP: PUT /k stores, GET /k gives back; the server lives in the language under test."""

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=10)

    def ask(self, connection, method, path, body=None):
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read()
        equal(answer.status, 200, f"{method} {path}: {text!r:.100}")
        return text

    def turn(self, connection):
        number = self.next
        equal(self.ask(connection, "PUT", f"/k{number}", f"value {number}"), b"stored", "PUT")
        self.next += 1
        equal(self.ask(connection, "GET", f"/k{number // 2}"), f"value {number // 2}".encode(), "GET")
        if number % 50 == 0:
            equal(self.ask(connection, "GET", "/check"), b"well", "its own check")


class Node(WebStore):
    name, needs = "node", ("node",)

    def prepare(self):
        self.next = 0
        script = self.write("server.js", """
const http = require('http'), { Worker, isMainThread, parentPort } = require('worker_threads'), crypto = require('crypto');
if (!isMainThread) {
  let n = 0;
  setInterval(() => { for (let i = 0; i < 200; i++) n++; parentPort.postMessage(n); }, 5);
} else {
  const store = new Map(); let ticks = 0, seen = [0, 0], wrong = null;
  setInterval(() => { ticks++; }, 10);
  for (let w = 0; w < 2; w++) new Worker(__filename).on('message', n => { if (n !== seen[w] + 200) wrong = `worker ${w}: ${n} after ${seen[w]}`; seen[w] = n; });
  const hash = s => crypto.createHash('sha256').update(s).digest('hex');
  http.createServer((q, a) => {
    let body = '';
    q.on('data', d => body += d);
    q.on('end', () => {
      if (q.url === '/check') { const t = ticks; setTimeout(() => a.end(wrong || (ticks > t ? 'well' : 'no ticks')), 60); return; }
      if (q.method === 'PUT') { store.set(q.url, [body, hash(body)]); a.end('stored'); return; }
      const v = store.get(q.url);
      if (!v || hash(v[0]) !== v[1]) { a.statusCode = 404; a.end('lost'); } else a.end(v[0]);
    });
  }).listen(PORT, '0.0.0.0');
}
""".replace("PORT", str(self.port)))
        return [shutil.which("node"), script]


class Java(WebStore):
    name, needs = "java", ("java", "javac")

    def prepare(self):
        self.next = 0
        self.write("Server.java", """
import com.sun.net.httpserver.*; import java.net.*; import java.util.*; import java.util.concurrent.*; import java.util.concurrent.atomic.*;
public class Server {
  static volatile String wrong; static final AtomicLongArray rounds = new AtomicLongArray(50);
  static long mix(long x) { for (int i = 0; i < 2000; i++) { x ^= x << 13; x ^= x >>> 7; x ^= x << 17; } return x; }
  public static void main(String[] a) throws Exception {
    ConcurrentHashMap<String, String> store = new ConcurrentHashMap<>();
    for (int t = 0; t < 50; t++) { final int id = t; final long expected = mix(id + 1);
      Thread th = new Thread(() -> { while (true) { if (mix(id + 1) != expected) wrong = "thread " + id + " computed otherwise"; rounds.incrementAndGet(id);
        try { Thread.sleep(5); } catch (InterruptedException e) { wrong = "interrupted"; } byte[] garbage = new byte[1 << 14]; garbage[id] = 1; } }); th.setDaemon(true); th.start(); }
    HttpServer s = HttpServer.create(new InetSocketAddress("0.0.0.0", PORT), 16);
    s.createContext("/", x -> { String p = x.getRequestURI().getPath(), out = "lost"; int code = 200;
      byte[] in = x.getRequestBody().readAllBytes();
      if (p.equals("/check")) { out = wrong != null ? wrong : "well"; for (int i = 0; i < 50; i++) if (rounds.get(i) == 0) out = "thread " + i + " never ran"; }
      else if (x.getRequestMethod().equals("PUT")) { store.put(p, new String(in)); out = "stored"; }
      else { out = store.getOrDefault(p, "lost"); if (out.equals("lost")) code = 404; }
      byte[] b = out.getBytes(); x.sendResponseHeaders(code, b.length); x.getResponseBody().write(b); x.close(); });
    s.setExecutor(Executors.newFixedThreadPool(4)); s.start(); } }
""".replace("PORT", str(self.port)))
        subprocess.run(["javac", "-d", self.folder, self.path("Server.java")], check=True, timeout=300)
        return [os.path.realpath(shutil.which("java")), "-Xmx128m", "-cp", self.folder, "Server"]


class Asyncio(WebStore):
    name = "asyncio"

    def prepare(self):
        self.next = 0
        script = self.write("server.py", """
import asyncio, sys, hashlib, concurrent.futures, subprocess
store, ticks = {}, 0
pool = concurrent.futures.ThreadPoolExecutor(4)
def digest(v): return hashlib.sha256(v).hexdigest()
async def tick():
    global ticks
    while True:
        await asyncio.sleep(0.01); ticks += 1
async def serve(r, w):
    try:
        while True:
            line = (await r.readline()).split()
            if not line: break
            size = 0
            while (h := await r.readline()) not in (b'\\r\\n', b''):
                if h.lower().startswith(b'content-length:'): size = int(h.split(b':')[1])
            body = await r.readexactly(size) if size else b''
            code = 200
            if line[1] == b'/check':
                before = ticks
                p = await asyncio.create_subprocess_exec('/bin/echo', 'child', stdout=subprocess.PIPE)
                said = (await p.communicate())[0]
                await asyncio.sleep(0.06)
                out = b'well' if ticks > before and said == b'child\\n' else b'no ticks or child'
            elif line[0] == b'PUT':
                store[line[1]] = (body, await asyncio.get_running_loop().run_in_executor(pool, digest, body)); out = b'stored'
            else:
                v = store.get(line[1])
                if v is None or digest(v[0]) != v[1]: code, out = 404, b'lost'
                else: out = v[0]
            w.write(b'HTTP/1.1 %d x\\r\\nContent-Length: %d\\r\\n\\r\\n%s' % (code, len(out), out)); await w.drain()
    except (ConnectionError, asyncio.IncompleteReadError): pass
    finally: w.close()
async def main():
    t = asyncio.create_task(tick())
    s = await asyncio.start_server(serve, '0.0.0.0', int(sys.argv[1]))
    await s.serve_forever()
asyncio.run(main())
""")
        return ["/usr/bin/python3", script, str(self.port)]


class SelfDriving(Daemon):
    """Works by itself and writes how far it is, and what went wrong, to a file."""

    def progress(self):
        try:
            with open(self.path("progress"), encoding="utf-8") as f:
                return f.read().split("\n")[0]
        except OSError:
            return ""

    def start_load(self):
        pass

    def good(self):
        words = self.progress().split()
        return int(words[0]) if words and words[0].isdigit() else 0

    def wrong(self):
        text = self.progress()
        return text if text and not text.split()[0].isdigit() else None


class Sqlite(SelfDriving):
    name = "sqlite"

    def prepare(self):
        script = self.write("writer.py", """
import os, sqlite3, sys, time
folder = sys.argv[1]
def say(text):
    with open(folder + '/progress.new', 'w') as f: f.write(text)
    os.rename(folder + '/progress.new', folder + '/progress')
db = sqlite3.connect(folder + '/bank.db', isolation_level=None)
db.execute('PRAGMA journal_mode=WAL'); db.execute('PRAGMA synchronous=NORMAL')
db.execute('CREATE TABLE IF NOT EXISTS a(id INTEGER PRIMARY KEY, v INTEGER)')
db.execute('BEGIN'); db.executemany('INSERT OR REPLACE INTO a VALUES(?, 1000)', [(i,) for i in range(100)]); db.execute('COMMIT')
n = 0
while True:
    db.execute('BEGIN IMMEDIATE')
    db.execute('UPDATE a SET v=v-1 WHERE id=?', (n % 100,)); db.execute('UPDATE a SET v=v+1 WHERE id=?', (n * 7 % 100,))
    db.execute('COMMIT'); n += 1
    if n % 20 == 0:
        total = db.execute('SELECT sum(v) FROM a').fetchone()[0]
        say(str(n) if total == 100000 else 'sum %d' % total)
        time.sleep(0.01)
    if n % 1000 == 0:
        r = db.execute('PRAGMA integrity_check').fetchone()[0]
        if r != 'ok': say('integrity ' + r); break
""")
        return ["/usr/bin/python3", script, self.folder]


class Make(SelfDriving):
    """Builds a small project again and again; each binary must print what it should."""
    name, needs = "make", ("make", "gcc")

    def prepare(self):
        for i in range(12):
            self.write(f"f{i}.c", f"#include <stdio.h>\nint f{i}(int x) {{ int s = 0; for (int i = 0; i < x; i++) s += i * {i} % 7; return s; }}\n")
        self.write("main.c", "#include <stdio.h>\n" + "".join(f"int f{i}(int);\n" for i in range(12)) +
                   "int main(void) { int s = 0;\n" + "".join(f"s += f{i}({100 + i});\n" for i in range(12)) + 'printf("%d\\n", s); return 0; }\n')
        objects = " ".join(f"f{i}.o" for i in range(12)) + " main.o"
        self.write("Makefile", f"prog: {objects}\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -O1 -c -o $@ $<\nclean:\n\trm -f *.o prog\n")
        wanted = sum(sum(i * k % 7 for i in range(100 + k)) for k in range(12))
        loop = self.write("loop.sh", f"""cd {self.folder}
n=0
while :; do
  make -s clean; make -s -j2 prog 2>error || {{ echo "make failed: $(tr '\\n' ' ' <error)" >progress.new; mv progress.new progress; exit 1; }}
  # The nodes of a bench share one kernel: what stays behind of a linker has prog open until it is destroyed.
  got=$(./prog 2>>said) || {{ sleep 0.3; got=$(./prog 2>>said); }}
  if [ "$got" != {wanted} ]; then echo "printed $got: $(tail -n 1 said)" >progress.new; mv progress.new progress; exit 1; fi
  n=$((n + 1)); echo $n >progress.new; mv progress.new progress
done
""")
        return ["/bin/sh", loop]


class StressNg(SelfDriving):
    name, needs = "stress-ng", ("stress-ng",)

    def prepare(self):
        loop = self.write("loop.sh", f"""cd {self.folder}
n=0
while :; do
  stress-ng --verify --timeout 2s --temp-path {self.folder} --cpu 1 --vm 1 --vm-bytes 8m --pipe 1 --futex 1 --switch 1 --sem 1 --msg 1 --poll 1 --eventfd 1 --matrix 1 --qsort 1 >out 2>&1
  if [ $? != 0 ] || grep -qi fail out; then echo "stress-ng: $(tail -n 3 out | tr '\\n' ' ')" >progress.new; mv progress.new progress; exit 1; fi
  n=$((n + 1)); echo $n >progress.new; mv progress.new progress
done
""")
        return ["/bin/sh", loop]


class Postgres(Daemon):
    """Transfers between accounts: their sum never changes, and no acknowledged one is lost."""
    name, needs, user = "postgres", ("/usr/lib/postgresql/15/bin/postgres", "psycopg2"), "postgres"

    def prepare(self):
        data, binaries = self.path("data"), "/usr/lib/postgresql/15/bin"
        shutil.chown(self.folder, "postgres")
        run = ["runuser", "-u", "postgres", "--"]
        subprocess.run([*run, f"{binaries}/initdb", "-D", data, "-A", "trust", "--no-sync"], check=True, timeout=300, stdout=subprocess.DEVNULL)
        with open(data + "/pg_hba.conf", "a", encoding="ascii") as f:
            f.write("host all all 0.0.0.0/0 trust\n")
        self.acknowledged = {}
        return [f"{binaries}/postgres", "-D", data, "-k", "/var/lib/postgresql", "-h", "0.0.0.0", "-p", str(self.port),
                "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "logging_collector=on", "-c", "max_connections=20"]

    def connect(self):
        import psycopg2
        connection = psycopg2.connect(host=self.host, port=self.port, user="postgres", dbname="postgres", connect_timeout=10,
                                      options="-c statement_timeout=10000", keepalives_idle=1, tcp_user_timeout=3000)
        with connection.cursor() as c:
            c.execute("CREATE TABLE IF NOT EXISTS account(id int PRIMARY KEY, v int)")
            c.execute("CREATE TABLE IF NOT EXISTS done(client int PRIMARY KEY, n int)")
            c.execute("INSERT INTO account SELECT i, 1000 FROM generate_series(0, 99) i ON CONFLICT DO NOTHING")
        connection.commit()
        return connection

    def turn_of(self, client):
        def turn(connection):
            n = self.acknowledged.get(client, 0)
            with connection.cursor() as c:
                c.execute("SELECT n FROM done WHERE client = %s", (client,))
                row = c.fetchone()
                if (row[0] if row else 0) not in (n, n + 1):   # one may have been committed without our hearing of it
                    raise AssertionError(f"client {client}: {row} committed, {n} acknowledged")
                n = row[0] if row else 0
                low, high = sorted(((n * 3 + client) % 100, (n * 11 + 7) % 100))
                c.execute("UPDATE account SET v = v - 1 WHERE id = %s", (low,))
                c.execute("UPDATE account SET v = v + 1 WHERE id = %s", (high,))
                c.execute("INSERT INTO done VALUES (%s, 1) ON CONFLICT (client) DO UPDATE SET n = done.n + 1", (client,))
            connection.commit()
            self.acknowledged[client] = n + 1
            if n % 20 == 0:
                with connection.cursor() as c:
                    c.execute("SELECT sum(v), count(*) FROM account")
                    equal(c.fetchone(), (100000, 100), "sum and number of accounts")
                connection.commit()
        return turn

    def start_load(self):
        self.connect().close()
        self.loads = [Load(self.connect, self.turn_of(i)) for i in range(3)]
        for load in self.loads:
            load.start()


ALL = [Nginx, Memcached, Mosquitto, Node, Java, Asyncio, Sqlite, Make, StressNg, Postgres]


def by_hand(build, names):
    import tempfile
    folder = tempfile.mkdtemp(prefix="baton-daemons-", dir="/tmp")
    os.chmod(folder, 0o755)
    bad = []
    for i, kind in enumerate(x for x in ALL if not names or x.name in names):
        daemon = kind(folder, 17100 + i)
        command = daemon.prepare()
        if daemon.user:
            command = ["setpriv", "--reuid", daemon.user, "--regid", daemon.user, "--clear-groups", "--", *command]
        moves = int(os.environ.get("MOVES", "3"))
        zoo = subprocess.Popen([f"{build}/bin/baton-zoo", "exec", "--moves", str(moves), "--checkpoints", os.environ.get("CHECKPOINTS", "4"), "--policy", "close", "--", *command],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(f"{daemon.name}: {zoo.stdout.readline().strip()}", flush=True)
        time.sleep(float(os.environ.get("SETTLE", "2")))
        try:
            daemon.start_load()
            trouble = None
            for _ in range(moves):
                before = daemon.good()
                deadline = time.monotonic() + 90
                while daemon.good() < before + 3 and not daemon.wrong() and time.monotonic() < deadline:
                    time.sleep(0.05)
                if daemon.good() < before + 3:
                    trouble = f"no progress ({[getattr(x, 'last', '') for x in daemon.loads]})"
                    break
                zoo.stdin.write("go\n")
                zoo.stdin.flush()
                line = zoo.stdout.readline().strip()
                print(f"{daemon.name}: {line}; {daemon.good()} good", flush=True)
                if "moved" not in line:
                    trouble = line
                    break
            if not trouble:
                before, deadline = daemon.good(), time.monotonic() + 60
                while daemon.good() < before + 3 and not daemon.wrong() and time.monotonic() < deadline:
                    time.sleep(0.05)
                trouble = daemon.wrong() or (daemon.good() < before + 3 and "no progress after the last move") or None
            daemon.stop_load()
            if not trouble:
                daemon.final_check()
        except (OSError, subprocess.SubprocessError, AssertionError) as e:
            trouble = repr(e)
        if trouble:
            bad.append(f"{daemon.name}: {trouble}")
        rest = zoo.communicate("end\n")[0] if zoo.poll() is None else zoo.stdout.read()
        print(f"{daemon.name}: {trouble or 'well'}; {rest[-1500:]}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return bad


def drive(name, folder, port, host):
    """Prepares one and puts it to use at `host`, as asked for on stdin: begin, look, end."""
    daemon = next(x for x in ALL if x.name == name)(folder, int(port))
    daemon.host = host
    print(json.dumps({"command": daemon.prepare(), "user": daemon.user}), flush=True)
    for line in sys.stdin:
        answer = {}
        try:
            if line.strip() == "begin":
                daemon.start_load()
            elif line.strip() == "end":
                daemon.stop_load()
                daemon.final_check()
        except Exception as e:
            answer["trouble"] = repr(e)
        answer.update(good=daemon.good(), wrong=daemon.wrong(), reconnects=sum(x.reconnects for x in daemon.loads), last=str([getattr(x, "last", "") for x in daemon.loads]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--drive":
        drive(*sys.argv[2:])
        sys.exit(0)
    found = by_hand(sys.argv[1], sys.argv[2:])
    print("\n".join(found) or "all well")
    sys.exit(1 if found else 0)
