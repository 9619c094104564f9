"""Alert rules, the Grafana dashboard and systemd units against what the programs really have.

usage: check_deploy.py SOURCE_DIR [unittest's options]
"""
import json
import os
import re
import shutil
import subprocess
import sys
import unittest

TOP = sys.argv.pop(1)
EXPOSURE_LIMIT = {"baton-coordinator": 2.0, "baton-agent": 2.0, "baton-warden": 8.8}


def text_of(path):
    with open(f"{TOP}/{path}", encoding="utf-8") as f:
        return f.read()


def run(*command, cwd=None):
    return subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)


def served_metrics():
    return set(re.findall(r'"(baton_[a-z0-9_]+)"', text_of("coordinator/http/metrics.cc")))


def used_metrics(text):
    names = set(re.findall(r"\b(baton_[a-z0-9_]+)\b", text))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


class Deploy(unittest.TestCase):
    def test_rules_fire_when_they_should(self):
        if not shutil.which("promtool"):
            self.skipTest("promtool")
        for command in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
            done = run("promtool", *command, cwd=TOP + "/deploy/prometheus")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        alerts = set(re.findall(r"alert: (\w+)", text_of("deploy/prometheus/alerts.yml")))
        tested = set(re.findall(r"alertname: (\w+)", text_of("deploy/prometheus/alerts_test.yml")))
        self.assertEqual(alerts, tested, "every alert has a test")

    def test_only_metrics_that_exist_are_used(self):
        served = served_metrics()
        self.assertGreater(len(served), 25)
        for path in ("deploy/prometheus/alerts.yml", "deploy/grafana/baton.json"):
            used = used_metrics(text_of(path))
            self.assertTrue(used)
            self.assertEqual(used - served, set(), path)

    def test_every_metric_is_documented(self):
        documented = text_of("docs/metrics.md")
        for name in served_metrics():
            short = "…" + name[name.index("_pages_") + 6:] if "_pages_" in name else name
            self.assertTrue(f"`{name}`" in documented or f"`{short}`" in documented, name)

    def test_the_grafana_dashboard_is_whole(self):
        board = json.loads(text_of("deploy/grafana/baton.json"))
        self.assertEqual(len({panel["id"] for panel in board["panels"]}), len(board["panels"]))
        for panel in board["panels"]:
            self.assertTrue(panel["title"] and panel["targets"], panel)

    def test_units_expose_little(self):
        if not shutil.which("systemd-analyze"):
            self.skipTest("systemd-analyze")
        for unit, limit in EXPOSURE_LIMIT.items():
            done = run("systemd-analyze", "security", "--offline=true", f"{TOP}/deploy/systemd/{unit}.service")
            found = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
            self.assertTrue(found, done.stdout + done.stderr)
            print(f"{unit}: exposure {found.group(1)}")
            self.assertLessEqual(float(found.group(1)), limit, unit)

    def test_units_start_programs_with_flags_that_exist(self):
        sources = {"baton-coordinator": "coordinator/main.cc", "baton-agent": "agent/node/main.cc", "baton-warden": "agent/warden/program.cc"}
        for unit, source in sources.items():
            line = re.search(r"^ExecStart=/usr/bin/(\S+) (.*)$", text_of(f"deploy/systemd/{unit}.service"), re.M)
            self.assertEqual(line.group(1), unit)
            code = text_of(source)
            for flag in re.findall(r"--[a-z-]+", line.group(2)):
                self.assertIn(f'"{flag}"', code, unit)

    def test_manual_pages_are_whole(self):
        if not shutil.which("scdoc"):
            self.skipTest("scdoc")
        pages = sorted(name for name in os.listdir(TOP + "/docs/man") if name.endswith(".scd"))
        self.assertEqual(pages, ["baton-agent.8.scd", "baton-coordinator.8.scd", "baton-warden.8.scd", "baton.1.scd"])
        for page in pages:
            with open(f"{TOP}/docs/man/{page}", encoding="utf-8") as source:
                done = subprocess.run(["scdoc"], stdin=source, capture_output=True, text=True, timeout=20, check=False)
            self.assertEqual(done.returncode, 0, page + done.stderr)
        manual = text_of("docs/man/baton.1.scd")
        missing = []
        for name in os.listdir(TOP + "/coordinator/cli"):
            if not name.startswith("commands_"):
                continue
            code = text_of("coordinator/cli/" + name)
            for verb in re.findall(r'add_verb\(app, context, "([a-z-]+)"', code):
                if f"*{verb}*" not in manual:
                    missing.append(verb)
        self.assertEqual(missing, [], "verbs without a place in baton(1)")


if __name__ == "__main__":
    os.environ["SYSTEMD_COLORS"] = "0"
    unittest.main()
