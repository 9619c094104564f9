"""Page sets of real programs, and what other stores make of them.

capture() stops a program and its children every so often and writes their writable private
memory to a folder: one file per region, named by it. The same folders are then given to
bench_store and to the peers, each with a repository of its own, one snapshot per set, in the
order of time. Peers run at their defaults and, where it can be chosen, with zstd level 3.
"""
import os
import re
import resource
import shutil
import signal
import subprocess
import time

SKIP = re.compile(r"\[(vvar|vdso|vsyscall|vvar_vclock)\]")


def descendants(root):
    children = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as f:
                children.setdefault(int(f.read().rsplit(")", 1)[1].split()[1]), []).append(int(entry))
        except (OSError, ValueError, IndexError):
            continue
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return found


def dump(pid, folder):
    """Writable private memory of a stopped process; pages it never touched are holes of zeros."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as f:
        lines = f.readlines()
    total = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in lines:
            fields = line.split(maxsplit=5)
            if fields[1][1] != "w" or fields[1][3] != "p" or SKIP.search(line):
                continue
            start, end = (int(x, 16) for x in fields[0].split("-"))
            try:
                mem.seek(start)
                data = mem.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
            with open(f"{folder}/{pid}-{fields[0]}", "wb") as out:
                out.write(data)
            total += len(data)
    return total


def capture(command, folder, count, interval_s, started=None):
    """`count` sets of `command` (argv), which is started here and ended afterwards."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    total = 0
    helper = None
    try:
        if started:
            helper = started(process)
        time.sleep(1)
        for i in range(count):
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended after {i} sets with {process.returncode}")
            place = f"{folder}/{i:03}"
            os.makedirs(place)
            pids = descendants(process.pid)
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGSTOP)
                except ProcessLookupError:
                    continue
            try:
                for pid in pids:
                    try:
                        total += dump(pid, place)
                    except OSError:
                        continue
            finally:
                for pid in pids:
                    try:
                        os.kill(pid, signal.SIGCONT)
                    except ProcessLookupError:
                        continue
            time.sleep(interval_s)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        if helper:
            helper.kill()
            helper.wait()
    return total


def size_of(folder):
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)


def timed(commands, environment=None, cwd=None):
    """Runs the commands; wall seconds and processor seconds of them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    for command in commands:
        done = subprocess.run(command, env={**os.environ, **(environment or {})}, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command[:3])}: exit {done.returncode}: {done.stderr.strip()[-300:]}")
    wall = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def snapshots(sets, live):
    """Each set in turn as the same folder, which is what a backup program expects of a source."""
    for name in sorted(os.listdir(sets)):
        shutil.rmtree(live, ignore_errors=True)
        os.rename(f"{sets}/{name}", live)
        try:
            yield name
        finally:
            os.rename(live, f"{sets}/{name}")


def over_sets(sets, work, command):
    live = f"{work}/live"
    wall = cpu = 0.0
    for name in snapshots(sets, live):
        one_wall, one_cpu = timed(*command(name, live))
        wall += one_wall
        cpu += one_cpu
    return wall, cpu


def restic(sets, work):
    repo = f"{work}/restic"
    env = {"RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": repo, "RESTIC_CACHE_DIR": f"{work}/restic-cache", "GOMAXPROCS": "1"}
    timed([["restic", "init", "--repository-version", "2"]], env)
    wall, cpu = over_sets(sets, work, lambda name, live: ([["restic", "backup", "--quiet", "--force", live]], env))
    return wall, cpu, size_of(repo)


def borg(sets, work, compression=None):
    repo = f"{work}/borg{compression or ''}".replace(",", "-")
    env = {"BORG_REPO": repo, "BORG_BASE_DIR": f"{work}/borg-base", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    timed([["borg", "init", "--encryption", "none"]], env)
    options = ["--compression", compression] if compression else []
    wall, cpu = over_sets(sets, work, lambda name, live: ([["borg", "create", "--files-cache", "disabled", *options, f"::{name}", live]], env))
    wall_tidy, cpu_tidy = timed([["borg", "compact"]], env)
    return wall + wall_tidy, cpu + cpu_tidy, size_of(repo)


def casync(sets, work):
    repo = f"{work}/casync"
    os.makedirs(repo)
    wall, cpu = over_sets(sets, work, lambda name, live: (
        [["casync", "make", "--without=privileged", f"--store={repo}/store.castr", f"{repo}/{name}.caidx", live]],))
    return wall, cpu, size_of(repo)


def zstd_files(sets, work, level=3):
    repo = f"{work}/zstd"
    os.makedirs(repo)
    wall, cpu = over_sets(sets, work, lambda name, live: ([["sh", "-c", f"tar -cf - -C {live} . | zstd -q -{level} -T1 -o {repo}/{name}.tar.zst"]],))
    return wall, cpu, size_of(repo)


PEERS = {
    "restic": (restic, "restic"),
    "borg": (borg, "borg"),
    "borg_zstd3": (lambda sets, work: borg(sets, work, "zstd,3"), "borg"),
    "casync": (casync, "casync"),
    "zstd_files": (zstd_files, "zstd"),
}


def redis_load(process):
    """A key-value store with 60 % reads and values that compress by half."""
    script = ("import os,random,socket,sys,time\n"
              "r=random.Random(1)\n"
              "while True:\n"
              "  try: s=socket.create_connection(('127.0.0.1', int(sys.argv[1]))); break\n"
              "  except OSError: time.sleep(.05)\n"
              "def say(*a): s.sendall(b''.join([b'*%d\\r\\n'%len(a)]+[b'$%d\\r\\n%s\\r\\n'%(len(x),x) for x in a]))\n"
              "while True:\n"
              "  for _ in range(50):\n"
              "    key=b'key%d'%r.randrange(20000)\n"
              "    if r.random()<.6: say(b'GET',key)\n"
              "    else: say(b'SET',key,r.randbytes(200)+b'x'*200)\n"
              "  got=0\n"
              "  s.setblocking(False)\n"
              "  try:\n"
              "    while s.recv(1<<20): pass\n"
              "  except BlockingIOError: pass\n"
              "  s.setblocking(True)\n"
              "  time.sleep(.01)\n")
    return subprocess.Popen(["python3", "-c", script, str(process.baton_port)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def free_port():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def make_source(folder):
    """A C program large enough that compiling it fills the compiler's memory."""
    path = f"{folder}/source.c"
    with open(path, "w", encoding="ascii") as f:
        f.write("#include <stdio.h>\n#include <string.h>\n#include <stdlib.h>\n")
        for i in range(1500):
            f.write(f"static int f{i}(int *a, int n) {{ int s = {i}; for (int k = 0; k < n; ++k) {{ if (a[k] % {i % 13 + 2}) s += a[k] * {i}; "
                    f"else s ^= a[n - 1 - k]; }} char t[{i % 60 + 9}]; snprintf(t, sizeof t, \"%d\", s); return s + (int)strlen(t); }}\n")
        f.write("int main(int c, char **v) { int a[64] = {0}; int s = c; (void)v;\n" + "".join(f"s += f{i}(a, 64);\n" for i in range(1500)) + "return s; }\n")
    return path


def programs(work):
    """Name, command, and what to do once it runs."""
    port = free_port()
    source = make_source(work)
    text = f"{work}/text"
    subprocess.run(f"cat /usr/include/c++/12/*.h /usr/include/c++/12/bits/*.h /usr/include/*.h 2>/dev/null | head -c 8000000 > {text}", shell=True, check=True)

    def load(process):
        process.baton_port = port
        return redis_load(process)
    return [
        ("gcc", ["sh", "-c", f"while :; do gcc -O2 -c {source} -o {work}/source.o; done"], None),
        ("bzip2", ["sh", "-c", f"while :; do bzip2 -9 -k -c {text} > {work}/text.bz2; done"], None),
        ("redis", ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"], load),
    ]
