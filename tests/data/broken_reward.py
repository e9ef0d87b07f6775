"""A reward that its worker process cannot build; in a file of its own, free of torch."""

import time

from rlsgd.rewards.base import Reward


class Patient(Reward):
    """Is built when its file is there."""

    isolated = True

    def __init__(self, file):
        self.file = file

    def score(self, completion, problem):
        return 1.0

    def prepare(self):
        while not self.file.exists():
            time.sleep(0.05)


class Sulking(Reward):
    isolated = True

    def score(self, completion, problem):
        return 1.0

    def prepare(self):
        raise ImportError("no verifier here")
