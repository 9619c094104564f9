"""The dashboard in Debian's Chromium, driven by playwright-core, against a bench of virtual ECUs.

The bench is made here; what a person does and sees is in dashboard.mjs, which runs in the
bench's network. `BATON_SCREENSHOTS=DIR` keeps its pictures there.
"""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "system"))

import bench  # noqa: E402
from bench import Case, main, skip, tracee  # noqa: E402


def install_packages(build):
    """node_modules by the lock file, once; the folder appears whole or not at all."""
    with open(HERE + "/package-lock.json", "rb") as f:
        folder = f"{build}/browser-packages-{hashlib.sha256(f.read()).hexdigest()[:16]}"
    if not os.path.isdir(folder):
        fresh = tempfile.mkdtemp(prefix="browser-new-", dir=build)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(f"{HERE}/{name}", fresh)
        done = subprocess.run(["npm", "ci", "--include=dev", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
                              cwd=fresh, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode != 0:
            skip("the npm packages of tests/browser: " + (done.stderr.strip().splitlines() or ["npm ci failed"])[0])
        os.rename(fresh, folder)
    return folder


class Dashboard(Case):
    nodes = 3

    def browse(self, *scenes):
        packages = install_packages(bench.BUILD)
        pictures = os.environ.get("BATON_SCREENSHOTS") or self.bench.dir + "/log/screenshots"
        os.makedirs(pictures, exist_ok=True)
        done = subprocess.run([bench.VECU, "exec", "--dir", self.bench.dir, "operator", "--", "node", HERE + "/dashboard.mjs", *scenes],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False,
                              env={**os.environ, "BATON_PACKAGES": packages, "BATON_BENCH": self.bench.dir, "BATON_VECU": bench.VECU,
                                   "BATON_SCREENSHOTS": pictures})
        print(done.stdout, flush=True)
        if done.returncode != 0:
            raise AssertionError(f"the browser's scenes failed\n{done.stdout}{done.stderr}")

    def test_sources_are_strict_typescript(self):
        packages = install_packages(bench.BUILD)
        source = os.path.join(os.path.dirname(os.path.dirname(HERE)), "coordinator", "dashboard")
        with tempfile.TemporaryDirectory(prefix="types-", dir=bench.BUILD) as work:
            shutil.copytree(source + "/src", work + "/src")
            for name in ("tsconfig.json", "styles.d.ts"):
                shutil.copy(f"{source}/{name}", work)
            bundled = [d for d in os.listdir(bench.BUILD + "/dashboard") if d.startswith("packages-")]
            os.symlink(f"{bench.BUILD}/dashboard/{bundled[0]}/node_modules", work + "/node_modules")
            done = subprocess.run(["node", packages + "/node_modules/typescript/bin/tsc", "-p", work], capture_output=True, text=True, timeout=120, check=False)
            self.assertEqual(done.returncode, 0, done.stdout)

    def test_what_people_see_and_do(self):
        for name, standby in (("counter", "ecu2"), ("writer", "ecu3")):
            self.start(name, [tracee("counter")], "--interval", "200ms", "--standby", standby).ready().wait_commit()
        self.browse()


if __name__ == "__main__":
    for program in ("node", "npm", "chromium"):
        if not shutil.which(program):
            skip(program)
    main()
