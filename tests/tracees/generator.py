#!/usr/bin/python3
"""A generator stopped in mid-iteration, threads with locks, and big integers.

Prints "ready"; at SIGUSR1 checks itself and prints "ok" or "FAILED: what".
"""
import hashlib
import os
import signal
import threading
import time


def primes():
    found = []
    candidate = 2
    while True:
        if all(candidate % p for p in found if p * p <= candidate):
            found.append(candidate)
            yield candidate
        candidate += 1


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


lock = threading.Lock()
totals = [0, 0, 0]
rounds = [0, 0, 0]
problems = []


def chain(index):
    digest = hashlib.sha256(str(index).encode()).digest()
    while True:
        digest = hashlib.sha256(digest).digest()
        with lock:
            totals[index] += int.from_bytes(digest[:4], "little")
            rounds[index] += 1
        time.sleep(0.001)


def expected(index, count):
    digest = hashlib.sha256(str(index).encode()).digest()
    total = 0
    for _ in range(count):
        digest = hashlib.sha256(digest).digest()
        total += int.from_bytes(digest[:4], "little")
    return total


asked = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: asked.set())
for i in range(3):
    threading.Thread(target=chain, args=(i,), daemon=True).start()
sequence = primes()
last = 0
started = time.monotonic()
os.write(1, b"ready\n")
while True:
    prime = next(sequence)
    if prime <= last or not is_prime(prime):
        problems.append(f"the generator gave {prime} after {last}")
    last = prime
    now = time.monotonic()
    if now < started:
        problems.append("the monotonic clock ran backwards")
    started = now
    time.sleep(0.002)
    if asked.is_set():
        asked.clear()
        with lock:
            state = list(zip(totals, rounds))
        for index, (total, count) in enumerate(state):
            if expected(index, count) != total:
                problems.append(f"hash chain {index} is wrong")
        os.write(1, f"FAILED: {problems[0]}\n".encode() if problems else b"ok\n")
