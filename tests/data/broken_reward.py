"""A reward that its worker process cannot build; in a file of its own, free of torch."""

from rlsgd.rewards.base import Reward


class Sulking(Reward):
    isolated = True

    def score(self, completion, problem):
        return 1.0

    def prepare(self):
        raise ImportError("no verifier here")
