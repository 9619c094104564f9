#!/usr/bin/python3
"""Every header of a room compiles alone, and twice.

usage: check_headers_alone.py SOURCE_DIR BUILD_DIR [--share I/N]

Without --share, all of them (about three minutes on two cores). With it, every N-th: the
number of the last commit chooses where to begin, so that N commits in a row see all.
A header is checked with the flags of the build and without precompiled headers, so that a
missing include cannot hide.
"""
import argparse
import concurrent.futures
import json
import os
import shlex
import subprocess
import sys
import tempfile

ROOMS = ("base", "dedup", "storage", "transport", "tenure", "agent", "coordinator")
DROPPED_WITH_VALUE = ("-o", "-c", "-MT", "-MF", "-include", "-x")
DROPPED = ("-MD", "-Winvalid-pch", "-fpch-preprocess")


def flags_of_the_build(build):
    """Those of a source that sees the contracts of both sides; every room's are the same or fewer."""
    with open(build + "/compile_commands.json", encoding="utf-8") as f:
        commands = json.load(f)
    command = next(c for c in commands if c["file"].endswith("/transport/rpc.cc"))
    words = shlex.split(command["command"])
    words = words[next(i for i, w in enumerate(words) if os.path.basename(w) in ("c++", "g++", "clang++", "g++-12", "clang++-16")):]
    flags, skip = [], False
    for word in words:
        if skip or word in DROPPED_WITH_VALUE:
            skip = not skip
        elif word not in DROPPED and not word.endswith(".cc"):
            flags.append(word)
    return flags


def headers(top):
    found = []
    for room in ROOMS:
        for folder, _, files in os.walk(f"{top}/{room}"):
            found += [os.path.relpath(f"{folder}/{name}", top) for name in files if name.endswith(".h")]
    return sorted(found)


def share_of(found, top, share):
    if not share:
        return found
    parts = int(share.split("/")[1])
    count = subprocess.run(["git", "-C", top, "rev-list", "--count", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    first = (int(share.split("/")[0]) + int(count or 0)) % parts
    return found[first::parts]


def compiles(flags, header):
    with tempfile.NamedTemporaryFile("w", suffix=".cc") as source:
        source.write(f'#include "{header}"\n#include "{header}"\n')
        source.flush()
        done = subprocess.run([*flags, "-O0", "-g0", "-fsyntax-only", source.name], capture_output=True, text=True, check=False)
    return header, done.returncode == 0, done.stderr


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("build")
    parser.add_argument("--share", default="")
    args = parser.parse_args()
    flags = flags_of_the_build(args.build)
    chosen = share_of(headers(args.source), args.source, args.share)
    if not chosen:
        sys.exit("no header was found: the check proves nothing")
    with tempfile.NamedTemporaryFile("w", suffix=".h") as lacking:
        lacking.write("#pragma once\ninline std::string lacks_its_include();\n")
        lacking.flush()
        if compiles(flags, lacking.name)[1]:
            sys.exit("a header that lacks an include was accepted: the check proves nothing")
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for header, good, errors in pool.map(lambda h: compiles(flags, h), chosen):
            if not good:
                failed += 1
                print(f"{header} does not compile alone:\n{errors}")
    print(f"{len(chosen)} headers, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
