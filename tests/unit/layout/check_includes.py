#!/usr/bin/python3
"""Includes run one way: DESIGN's table of folders, enforced.

usage: check_includes.py SOURCE_DIR. Prints every violation as file:line; exit
code 1 when there is one. Before that it proves on a made-up tree that it
would find each kind.
"""
import os
import re
import sys
import tempfile

ALLOWED = {
    "base": set(),
    "proto": set(),
    "dedup": {"base", "proto"},
    "storage": {"base", "proto", "dedup"},
    "transport": {"base", "proto", "dedup"},
    "tenure": {"base", "proto", "transport"},
    "agent": {"base", "proto", "dedup", "storage", "transport", "tenure"},
    "coordinator": {"base", "proto", "transport", "tenure"},
}
FORBIDDEN_NAMES = {"util", "utils", "common", "misc", "helpers"}
SOURCE = (".h", ".hpp", ".cc", ".cpp", ".c")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def violations(top):
    for room, allowed in ALLOWED.items():
        for folder, folders, files in os.walk(os.path.join(top, room)):
            for name in folders:
                if name in FORBIDDEN_NAMES:
                    yield f"{os.path.relpath(os.path.join(folder, name), top)}: no folder is named {name}"
            for name in sorted(files):
                if not name.endswith(SOURCE):
                    continue
                path = os.path.join(folder, name)
                shown = os.path.relpath(path, top)
                with open(path, encoding="utf-8") as text:
                    for number, line in enumerate(text, 1):
                        found = INCLUDE.match(line)
                        if not found:
                            continue
                        included = found.group(2)
                        parts = included.split("/")
                        if ".." in parts:
                            yield f"{shown}:{number}: {included}: include by the path from the top folder"
                        elif parts[0] in ("tests", "bench"):
                            yield f"{shown}:{number}: {included}: programs do not include tests or benchmarks"
                        elif parts[0] in ALLOWED and len(parts) > 1 and parts[0] != room:
                            if parts[0] not in allowed:
                                yield f"{shown}:{number}: {included}: {room} may include only {', '.join(sorted(allowed)) or 'nothing of ours'}"
                            elif len(parts) > 2:
                                yield f"{shown}:{number}: {included}: subfolders of {parts[0]} are private to it"


def prove():
    with tempfile.TemporaryDirectory() as top:
        def put(path, text):
            os.makedirs(os.path.join(top, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(top, path), "w", encoding="utf-8") as f:
                f.write(text)
        put("base/a.h", '#include "dedup/digest.h"\n')
        put("coordinator/state/x.cc", '#include "agent/agent.h"\n')
        put("agent/x.cc", '#include "transport/private/y.h"\n')
        put("agent/y.cc", '#include "../base/fd.h"\n')
        put("dedup/util/z.h", "")
        put("storage/w.cc", '#include "tests/z.h"\n')
        put("agent/fine.cc", '#include "agent/backend/linux/a.h"\n#include "dedup/digest.h"\n#include <vector>\n')
        found = sorted(v.split(":")[0] for v in violations(top))
        expected = ["agent/x.cc", "agent/y.cc", "base/a.h", "coordinator/state/x.cc", "dedup/util", "storage/w.cc"]
        assert found == expected, f"the check itself is broken: found {found}, not {expected}"


def main():
    prove()
    found = list(violations(sys.argv[1]))
    for violation in found:
        print(violation)
    print(f"{len(found)} violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
