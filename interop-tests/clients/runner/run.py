"""Runs client programs against a broker, holds their lines against the scenario lists, prints the table.

A scenario counts as passed only if its line says so: a missing line, a second one, an unknown name and a skip without
a reason are failures. Expected refusals (file `expectations`) are judged here, so that no client knows of them.
"""

import dataclasses
import fnmatch
import os
import re
import subprocess
import threading
import time

from .paths import CLIENTS
from .programs import scenario_names

LINE = re.compile(r"(ok|FAIL|skip) ([a-z0-9-]+)(?:: (.*))?")
LONG_SECONDS = 10  # a scenario that takes longer is printed with its time
PROGRAM_SECONDS = 900  # a broker that answers nothing costs every scenario its own time limit


@dataclasses.dataclass
class Expectation:
    """`scenario` of programs like `program` must fail with a reason in which `pattern` is found."""

    program: str
    scenario: str
    pattern: str

    @staticmethod
    def load(target):
        file = CLIENTS / "expectations" / target
        lines = file.read_text().splitlines() if file.exists() else []
        return [Expectation(*line.split(None, 2)) for line in lines if line.strip() and not line.startswith("#")]

    def judge(self, verdict, reason):
        if verdict == "FAIL" and re.search(self.pattern, reason):
            return "ok", f"refused, as expected: {reason}"
        if verdict == "ok":
            return "FAIL", "no longer refused: remove its line from the expectations"
        return verdict, reason


@dataclasses.dataclass
class Outcome:
    program: str
    expected: list
    results: dict = dataclasses.field(default_factory=dict)  # scenario -> (verdict, reason)
    seconds: float = 0

    def count(self, verdict):
        return sum(1 for result, _ in self.results.values() if result == verdict)

    @property
    def passed(self):
        return self.count("FAIL") == 0


def run_program(program, broker, environment, only, target, log, deadline):
    """Runs one program to its end or its time limit and judges every scenario of its list, then the broker."""
    names = [name for name in scenario_names(program.scenarios) if not only or any(fnmatch.fnmatch(name, o) for o in only)]
    outcome = Outcome(program.name, names)
    if not names:
        return outcome
    expectations = [e for e in Expectation.load(target) if fnmatch.fnmatch(program.name, e.program)]

    timing = {"last": time.monotonic()}

    def record(name, verdict, reason):
        for expectation in expectations:
            if expectation.scenario == name:
                verdict, reason = expectation.judge(verdict, reason)
        if name in outcome.results:
            verdict, reason = "FAIL", "more than one result"
        outcome.results[name] = (verdict, reason)
        now = time.monotonic()
        took = f" ({now - timing['last']:.0f} s)" if now - timing["last"] >= LONG_SECONDS else ""
        timing["last"] = now
        print(f"{program.name}: {verdict} {name}{took}" + (f": {reason}" if reason else ""), flush=True)

    started, raw_failure = time.monotonic(), False
    timing["last"] = started
    environment = dict(os.environ, INTEROP_TARGET=target, INTEROP_ONLY=",".join(names),
                       INTEROP_TABLES=str(CLIENTS / "tables"), **environment)
    with open(log, "w") as errors:
        child = subprocess.Popen(program.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                                 text=True, errors="replace", env=environment)
        limit = threading.Timer(max(1, min(PROGRAM_SECONDS, deadline - started)), child.kill)
        limit.start()
        for line in child.stdout:
            match = LINE.fullmatch(line.rstrip("\n"))
            if not match:
                errors.write(line)
                errors.flush()
                continue
            verdict, name, reason = match.group(1), match.group(2), match.group(3) or ""
            raw_failure |= verdict == "FAIL"
            if name not in names:
                verdict, reason = "FAIL", "not in the scenario list"
            if verdict == "skip" and not reason:
                verdict, reason = "FAIL", "skipped without a reason"
            record(name, verdict, reason)
        status = child.wait()
        limit.cancel()
    outcome.seconds = time.monotonic() - started
    if missing := [name for name in names if name not in outcome.results]:
        record("missing", "FAIL", f"{len(missing)} without a result: {', '.join(missing)}; the program ended with "
               f"{status} (log: {log})")
    if complaint := broker.complaint():
        record("broker", "FAIL", complaint)
    if (status != 0) != raw_failure and outcome.passed:
        record("exit-status", "FAIL", f"{status} does not fit the printed results (log: {log})")
    return outcome


def print_table(outcomes):
    """The summary; returns True when all is well."""
    width = max(len(outcome.program) for outcome in outcomes)
    print(f"\n{'client':<{width}}  {'ok':>4} {'FAIL':>5} {'skip':>5} {'of':>4} {'seconds':>8}")
    for outcome in outcomes:
        print(f"{outcome.program:<{width}}  {outcome.count('ok'):>4} {outcome.count('FAIL'):>5} "
              f"{outcome.count('skip'):>5} {len(outcome.expected):>4} {outcome.seconds:>8.1f}")
    for outcome in outcomes:
        for name, (verdict, reason) in outcome.results.items():
            if verdict != "ok":
                print(f"{verdict} {outcome.program} {name}: {reason}")
    return all(outcome.passed for outcome in outcomes)
