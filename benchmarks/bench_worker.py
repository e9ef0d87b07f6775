"""What both workers of the benchmark share: turns, the clock of phases, and what they report.

A worker waits until it is told to run one iteration, runs it, and reports. While it waits it reads
from a socket, which takes no processor time. Nothing of rlsgd is imported here: it would count as
memory of the other worker.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.resident import resident

PHASES = ("sampling", "scoring", "forward", "backward", "optimizer", "diagnostics", "checkpoint")
OTHER = "other"


class Clock:
    """Shares wall time out among phases; what belongs to none is `other`.

    Args:
        now: seconds, ever growing.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.restart()

    def restart(self) -> None:
        """A new iteration begins."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.stack = [OTHER]
        self.since = self.now()

    def switch(self, phase: str) -> None:
        """What follows belongs to `phase` instead of the present one."""
        moment = self.now()
        self.seconds[self.stack[-1]] += moment - self.since
        self.since = moment
        self.stack[-1] = phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is inside belongs to `name`, what follows to the phase before."""
        before = self.stack[-1]
        self.switch(before)
        self.stack.append(name)
        try:
            yield
        finally:
            self.switch(name)
            self.stack.pop()

    def wrap(self, owner: Any, method: str, phase: str) -> None:
        """Let every call of a method of an object belong to `phase`."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)

    def read(self) -> dict[str, float]:
        """Seconds of each phase since `restart`; their sum is the whole iteration's."""
        self.switch(self.stack[-1])
        return dict(self.seconds)


class Turns:
    """The worker's end of the socket: one report for every order, and times between them.

    Args:
        descriptor: of the socket, which the process has inherited.
    """

    def __init__(self, descriptor: int) -> None:
        self.stream = socket.socket(fileno=descriptor).makefile("rw", encoding="utf-8")
        self.clock = Clock()
        self.facts: dict[str, Any] = {}
        self.before = 0  # resident bytes just before the model is loaded
        self.running = False
        self.processor_since = 0.0  # time of all threads, which another program does not lengthen

    def loading(self) -> None:
        """The model is about to be loaded."""
        self.before = self.before or resident("VmRSS")

    def rolled_out(self, prompts: list[list[int]], tokens: int) -> None:
        """Note what a rollout was made of: unpadded token ids of each prompt, sampled tokens."""
        self.facts["prompts"] = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        self.facts["prompt_tokens"] = [len(ids) for ids in prompts]
        self.facts["tokens"] = tokens

    def scored(self, rewards: list[float], group: int) -> None:
        """Note which share of the groups has rewards that are all alike, and no gradient."""
        groups = [rewards[i : i + group] for i in range(0, len(rewards), group)]
        self.facts["groups_alike"] = sum(len(set(g)) == 1 for g in groups) / len(groups)

    def wait(self) -> dict[str, Any]:
        """Report the iteration that has ended, if any, and wait for the next order."""
        self.report()
        order = json.loads(self.stream.readline() or "null")
        if order is None:
            raise SystemExit("the benchmark has ended")
        self.running = True
        self.processor_since = time.process_time()
        self.clock.restart()
        return order

    def report(self) -> None:
        """Say what the iteration that has just ended took."""
        if not self.running:
            return
        self.running = False
        phases = self.clock.read()
        self.send(
            {
                "seconds": sum(phases.values()),
                "processor_seconds": time.process_time() - self.processor_since,
                "phases": phases,
                "peak_bytes": resident("VmHWM"),
                "before_bytes": self.before,
                **self.facts,
            }
        )

    def send(self, message: dict[str, Any]) -> None:
        self.stream.write(json.dumps(message) + "\n")
        self.stream.flush()


def text_hash(text: str) -> float:
    """The reward of a completion: a number in [0, 1), cheap, and never the same for two texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def unreachable_token(folder: str) -> int:
    """An id that no token has, for the stop token: every completion runs to its full length."""
    return int(json.loads((Path(folder) / "config.json").read_text())["vocab_size"])


def check_threads(threads: int) -> None:
    """Refuse to measure with another number of threads than was asked for."""
    import torch

    if torch.get_num_threads() != threads:
        raise RuntimeError(f"torch has {torch.get_num_threads()} threads instead of {threads}")


def environment(threads: int) -> dict[str, str]:
    """Of a worker: its number of threads, and nothing from the network."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **dict.fromkeys(names, str(threads)), **offline}
