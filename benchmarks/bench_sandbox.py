"""Measures what the sandboxes cost: programs per second, with one worker and with two.

    python -m benchmarks.bench_sandbox [--programs 200]

Each program is right and does next to nothing, so the rate is that of the sandbox. Workers are the
processes of the `Scorer`. The rows of `Unsandboxed` are what Python alone costs.
"""

import argparse
import time

from rlsgd.core.problems import Problem
from rlsgd.rewards import AssertTests, Bubblewrap, Landlock, Scorer, StdioTests, Unsandboxed
from rlsgd.rewards.sandbox.session import SandboxError

KINDS = (Bubblewrap, Landlock, Unsandboxed)
WORKERS = (1, 2)
REWARDS = {
    "assertions (two processes)": (
        AssertTests,
        "def square(x): return x * x",
        {"test": ["assert square(3) == 9"]},
    ),
    "input and output, one test": (
        StdioTests,
        "print(int(input()) ** 2)",
        {"tests": [{"input": "3", "output": "9"}]},
    ),
}


def programs_per_second(reward, program, columns, workers, count):
    """The rate at which a list of programs is scored, worker processes being up already."""
    problem = Problem("q", "a", {"columns": columns})
    with Scorer(reward, workers=workers, timeout_seconds=60) as scorer:
        scorer.wait_until_ready()
        started = time.perf_counter()
        scores = scorer.score([program] * count, [problem] * count)
        seconds = time.perf_counter() - started
    if scores.rewards != [1.0] * count:
        raise SystemExit(f"right programs did not all score 1: {set(scores.failures)}")
    return count / seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=200, help="programs of each measurement")
    count = parser.parse_args().programs
    print("| sandbox | tests | " + " | ".join(f"programs/s, {n} workers" for n in WORKERS) + " |")
    print("|---|---|" + "---|" * len(WORKERS))
    for kind in KINDS:
        try:
            kind().check()
        except SandboxError as error:
            print(f"| {kind.__name__} | does not work here: {error} |")
            continue
        for name, (reward, program, columns) in REWARDS.items():
            rates = [
                programs_per_second(reward(sandbox=kind()), program, columns, workers, count)
                for workers in WORKERS
            ]
            print(f"| {kind.__name__} | {name} | " + " | ".join(f"{r:.1f}" for r in rates) + " |")


if __name__ == "__main__":
    main()
