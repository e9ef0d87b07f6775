"""Verifiers that misbehave on demand. Importable by a worker process."""

import ctypes
import os
import sys
import time
from itertools import repeat

from rlsgd.rewards import StdioTests
from rlsgd.rewards.base import Reward
from rlsgd.rewards.math import MathVerify


class Hostile(Reward):
    """Does what the completion says; anything else scores 1."""

    isolated = True

    def score(self, completion, problem):
        actions = {
            "hang": lambda: time.sleep(600),
            "raise": lambda: 1 / 0,
            "none": lambda: None,
            "nan": lambda: float("nan"),
            "infinite": lambda: float("-inf"),
            "text": lambda: "1.0",
            "die": lambda: os._exit(1),
            "exit": lambda: sys.exit("bye"),
            "process": os.getpid,
            "torch": lambda: "torch" in sys.modules,
            "slow": lambda: time.sleep(0.4) or 1,
        }
        return actions.get(completion, lambda: 1)()


class LongCall(MathVerify):
    """Never comes back from one call of C, in which Python takes no signal."""

    def score(self, completion, problem):
        return float(sum(repeat(1)) if "bomb" in completion else super().score(completion, problem))


class HostileInline(Hostile):
    isolated = False


class BadParts(Reward):
    isolated = False

    def score(self, completion, problem):
        return 1.0

    def parts(self, completion, problem):
        return {"other": 1.0}


class NeedsTheTrainer(Reward):
    """Can be built in the process that pickled it, and nowhere else."""

    isolated = True

    def score(self, completion, problem):
        return 1.0

    def prepare(self):
        raise ImportError("no module named verifier_library")


class Unpicklable(Reward):
    isolated = True

    def __init__(self):
        self.function = lambda: 1

    def score(self, completion, problem):
        return 1.0


class Evaluates(Reward):
    """1 if the completion, evaluated as Python, equals the answer, evaluated too."""

    isolated = True

    def score(self, completion, problem):
        names = {**problem.metadata.get("names", {}), "REWARD": type(self)}
        return float(eval(completion, names) == eval(problem.answer, {}))


class EvaluatesTogether(Evaluates):
    """All completions in one process, as no verifier should."""

    fork_each = False

    @property
    def part_names(self):
        return ["evaluates"]

    @property
    def name(self):
        return "evaluates"


class HangsInPrepare(Evaluates):
    """Never ready: a library waits, and lets no other thread of Python run."""

    def prepare(self):
        os.write(2, b"preparing\n")
        ctypes.PyDLL(None).pause()


class TakesMemory(StdioTests):
    """Its worker takes as many MiB as the completion says, beside a program that runs."""

    def count_passed(self, completion, problem):
        passed = super().count_passed("print(1)", problem)
        bytearray(int(completion) * 2**20)
        return passed
