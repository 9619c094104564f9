#!/usr/bin/python3
"""Keeps in memory what it has written to files, and compares: an append-only log, an SQLite database
with a write-ahead log (its index is a shared mapping), and a tree that is renamed and pruned.

    ledger.py FOLDER [PERIOD_S]

Prints "ready"; at SIGUSR1 reads everything back and prints "ok" or "FAILED: what". It compares by
itself, too, every hundred steps: what a takeover had brought apart would show at once.
"""
import hashlib
import os
import signal
import sqlite3
import sys
import time

folder = sys.argv[1]
period_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.002
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))

log = os.open(folder + "/log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
database = sqlite3.connect(folder + "/db", isolation_level=None)
database.execute("pragma journal_mode = wal")
database.execute("pragma synchronous = normal")
database.execute("create table if not exists entries (n integer primary key, text text)")
lines, entries, tree = [], {}, {}


def line_of(n):
    return f"{n} {hashlib.sha256(str(n).encode()).hexdigest()}\n"


def step(n):
    line = line_of(n)
    os.write(log, line.encode())
    lines.append(line)
    key = n % 500
    database.execute("insert or replace into entries values (?, ?)", (key, line))
    entries[key] = line
    # Written beside, renamed over: as programs replace a file whole.
    name = f"{folder}/d{n % 7}/f{n % 20}"
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name + ".new", "w", encoding="ascii") as f:
        f.write(line * (n % 50))
    os.rename(name + ".new", name)
    tree[name] = line * (n % 50)
    if n % 13 == 0:
        gone = sorted(tree)[n % len(tree)]
        os.unlink(gone)
        del tree[gone]


def compare():
    with open(folder + "/log", encoding="ascii") as f:
        there = f.read()
    if there != "".join(lines):
        return f"the log has {there.count(chr(10))} lines, not {len(lines)}; it ends with {there[-90:]!r}"
    if os.lseek(log, 0, os.SEEK_CUR) != len(there):
        return "the log's position is not its end"
    rows = dict(database.execute("select n, text from entries"))
    if rows != entries:
        return f"the database has {len(rows)} rows, {sum(rows.get(k) != v for k, v in entries.items())} of {len(entries)} differ"
    if database.execute("pragma quick_check").fetchone() != ("ok",):
        return "the database is damaged"
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            if where != folder:
                with open(f"{where}/{name}", encoding="ascii") as f:
                    found[f"{where}/{name}"] = f.read()
    if found != tree:
        return f"the tree differs: {sorted(set(found) ^ set(tree))[:5] or [k for k in tree if tree[k] != found[k]][:5]}"
    return None


n = 0
print("ready", flush=True)
while True:
    n += 1
    step(n)
    if asked or n % 100 == 0:
        problem = compare()
        if problem:
            print(f"FAILED: at {n}: {problem}", flush=True)
            sys.exit(1)
        if asked:
            asked.clear()
            print("ok", flush=True)
    time.sleep(period_s)
