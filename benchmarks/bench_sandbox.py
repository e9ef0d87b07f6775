"""Measures what the walls cost: programs per second, and the time to score a rollout.

    python -m benchmarks.bench_sandbox [--programs 200] [--rollouts 5]

Each program is right and does next to nothing, so the rate is that of the sandbox. Workers are the
processes of the `Scorer`. The rows of `Unsandboxed` are what Python alone costs. A rollout is that
of `configs/grpo_embedded.yaml`: 32 prompts with 8 completions each. Its rows are for each wall, and
for a worker without one; `evaluated` is a verifier of one's own, each completion in its own fork.
"""

import argparse
import time
import warnings

from rlsgd.core.problems import Problem
from rlsgd.rewards import (
    AssertTests,
    Bubblewrap,
    Landlock,
    MathVerify,
    ReasoningGymScore,
    Reward,
    Scorer,
    StdioTests,
    Unsandboxed,
)
from rlsgd.rewards.isolation import IsolatedWorker
from rlsgd.rewards.sandbox.session import SandboxError
from rlsgd.rewards.sandbox.walls import WALLS, NoWall

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
PROMPTS, GROUP = 32, 8


class Evaluated(Reward):
    """1 if the completion has the value of the answer."""

    def score(self, completion, problem):
        return float(eval(completion) == eval(problem.answer))


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


def measure_programs(count):
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


def rollouts():
    """Reward, completions and problems of a rollout for each verifier; half of them are right."""
    from rlsgd.data.tasks.reasoning_gym import ReasoningGym

    sums = ReasoningGym("chain_sum").validation_problems(PROMPTS)
    numbers = [Problem("q", str(number + 7)) for number in range(PROMPTS)]
    yield "chain_sum", ReasoningGymScore("last_number"), "The sum is {}", sums
    yield "math-verify", MathVerify(), "So $x = 3/4$ and thus \\boxed{{{}}}", numbers
    yield "evaluated", Evaluated(), "{}", numbers


def measure_rollouts(repeats):
    print("\n| verifier | wall | s to score a rollout (best) | completions/s |\n|---|---|---|---|")
    for name, reward, form, problems in rollouts():
        items = [
            (form.format(problem.answer if i % 2 else 0), problem)
            for problem in problems
            for i in range(GROUP)
        ]
        for wall in (NoWall, *WALLS):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                worker = IsolatedWorker(reward, timeout_seconds=60, walls=[wall])
            try:
                worker.wait_until_ready()
                seconds = []
                for _ in range(repeats + 1):
                    started = time.perf_counter()
                    grades = worker.grade(items)
                    seconds.append(time.perf_counter() - started)
            except ValueError as error:
                print(f"| {name} | {wall.name} | does not work here: {error} | |")
                continue
            finally:
                worker.close()
            if sum(grade.score == 1 for grade in grades) != len(items) // 2:
                raise SystemExit(f"not half of {name} is right: {grades[:2]}")
            best = min(seconds[1:])
            print(f"| {name} | {wall.name} | {best:.4f} | {len(items) / best:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=200, help="programs of each measurement")
    parser.add_argument("--rollouts", type=int, default=5, help="rollouts of each measurement")
    arguments = parser.parse_args()
    if arguments.programs:
        measure_programs(arguments.programs)
    if arguments.rollouts:
        measure_rollouts(arguments.rollouts)


if __name__ == "__main__":
    main()
