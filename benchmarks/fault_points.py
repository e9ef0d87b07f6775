"""Places where a run can be killed. `arm` wraps functions of rlsgd in the process that calls it.

Each place has a function that wraps what happens there so that `strike` is called amid it; `after`
says how far in, in whatever the place counts: forward passes, parameters, bytes, steps.
"""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from typing import Any

Strike = Callable[[], None]


def arm(place: str, call: int, after: int, number: int = signal.SIGKILL) -> None:
    """Let this process get a signal at a place.

    Args:
        place: a key of `PLACES`.
        call: the n-th time that the place is reached, from 1.
        after: how far into it.
        number: of the signal.
    """
    calls, struck = 0, False

    def is_due() -> bool:
        nonlocal calls
        calls += 1
        return calls == call

    def strike() -> None:
        nonlocal struck
        if not struck:
            struck = True
            print(f"fault: {signal.Signals(number).name} in {place}", flush=True)
            os.kill(os.getpid(), number)

    PLACES[place](is_due, after, strike)


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a function by `wrapper(original, *args, **kwargs)`."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


def in_rollout(is_due: Callable[[], bool], after: int, strike: Strike) -> None:
    """In a forward pass of sampling or scoring, or when all of them are done."""
    from rlsgd.algorithms import RLModule

    def rollout(original: Any, self: Any, *args: Any) -> Any:
        if not is_due():
            return original(self, *args)
        left = after

        def count(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                strike()

        handle = self.policy.register_forward_pre_hook(count)
        result = original(self, *args)
        strike()
        handle.remove()
        return result

    wrap(RLModule, "rollout", rollout)


def in_backward(is_due: Callable[[], bool], after: int, strike: Strike) -> None:
    """When a parameter has its gradient, and others not yet."""
    from rlsgd.algorithms import RLModule

    def training_step(original: Any, self: Any, *args: Any) -> Any:
        if is_due():
            parameters = [p for p in self.parameters() if p.requires_grad]
            parameter = parameters[after % len(parameters)]
            parameter.register_post_accumulate_grad_hook(lambda _: strike())
        return original(self, *args)

    wrap(RLModule, "training_step", training_step)


def in_optimizer_step(is_due: Callable[[], bool], after: int, strike: Strike) -> None:
    """When some of the weights have moved. Only for a signal that kills."""
    from rlsgd.algorithms import PolicyModule

    def optimizer_step(
        original: Any, self: Any, epoch: int, batch: int, optimizer: Any, closure: Any
    ) -> Any:
        if not is_due():
            return original(self, epoch, batch, optimizer, closure)

        def part_of_them(*_: Any) -> None:
            number = len(groups[-1]["params"])
            groups[-1]["params"] = groups[-1]["params"][: after % (number + 1)]

        groups = optimizer.optimizer.param_groups
        optimizer.optimizer.register_step_pre_hook(part_of_them)
        optimizer.optimizer.register_step_post_hook(lambda *_: strike())
        return original(self, epoch, batch, optimizer, closure)

    wrap(PolicyModule, "optimizer_step", optimizer_step)


def in_checkpoint_write(is_due: Callable[[], bool], after: int, strike: Strike) -> None:
    """While bytes are written, before the file has its name, after, or amid removing old ones."""
    import torch.distributed.checkpoint as dcp

    from rlsgd.resume import callback, files

    stages = ("bytes", "before", "after", "removing")
    stage = stages[after % len(stages)]
    due = False

    def save(original: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal due
        due = is_due()
        return original(*args, **kwargs)

    def write(original: Any, self: Any, data: Any) -> Any:
        written = original(self, data)
        if due and stage == "bytes" and self.file.tell() > 97 * after:
            self.file.flush()
            strike()
        return written

    def save_shards(original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if due and stage == "bytes":  # all shards are there, and the rest of the checkpoint not
            strike()
        return result

    def publish(original: Any, *args: Any) -> Any:
        if due and stage == "before":
            strike()
        original(*args)
        if due and stage == "after":
            strike()

    def remove(original: Any, *args: Any) -> Any:
        if due and stage == "removing":
            strike()
        return original(*args)

    wrap(callback.IterationCheckpoint, "save", save)
    wrap(files._Writer, "write", write)
    wrap(dcp, "save", save_shards)
    wrap(files, "publish", publish)  # of one file
    wrap(callback, "publish", publish)
    wrap(callback, "_remove", remove)


def in_logs(is_due: Callable[[], bool], after: int, strike: Strike) -> None:
    """While `metrics.csv` is written, emptied for a new column at worst, or when all logs are."""
    from rlsgd.resume import callback

    class Writer(csv.DictWriter):
        def writerows(self, rows: Any) -> None:
            rows = list(rows)
            if is_due():
                super().writerows(rows[: after % (len(rows) + 1)])
                strike()
            else:
                super().writerows(rows)

    def log_sizes(original: Any, trainer: Any) -> Any:
        sizes = original(trainer)
        if after % 3 == 0 and is_due():
            strike()
        return sizes

    csv.DictWriter = Writer
    wrap(callback, "log_sizes", log_sizes)


def in_resuming(is_due: Callable[[], bool], after: int, strike: Strike) -> None:
    """While the logs are taken back to the checkpoint, or right after."""
    from rlsgd.cli import training as training_cli
    from rlsgd.resume import history

    def rewind(original: Any, *args: Any) -> Any:
        due = is_due()
        original(*args)
        if due:
            strike()

    if after % 3 == 0:
        wrap(history, "_truncate", rewind)
    elif after % 3 == 1:
        wrap(history, "publish", rewind)
    else:
        wrap(training_cli, "rewind", rewind)


def in_weight_gather(is_due: Callable[[], bool], after: int, strike: Strike) -> None:
    """While the shards of a policy are gathered for sampling: some layers are whole."""
    from torch.distributed.fsdp import FSDPModule

    def unshard(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_due():
            strike()
        return original(self, *args, **kwargs)

    wrap(FSDPModule, "unshard", unshard)


def in_weight_sync(is_due: Callable[[], bool], after: int, strike: Strike) -> None:
    """While an update is on its way to the vLLM engine."""
    from rlsgd.rollout.vllm import engine as vllm_engine

    def receive(original: Any, self: Any, *args: Any) -> Any:
        due = is_due()
        if due and after % 2 == 0:
            strike()
        original(self, *args)
        if due:
            strike()

    wrap(vllm_engine.LocalEngine, "receive", receive)


def in_engine(is_due: Callable[[], bool], after: int, strike: Strike) -> None:
    """The engine's own process is killed, before or amid sampling; the trainer is not."""
    import threading

    from rlsgd.rollout.vllm import engine as vllm_engine

    def kill_engine() -> None:
        for child in children(os.getpid()):
            print(f"fault: SIGKILL in vllm engine {child}", flush=True)
            os.kill(child, signal.SIGKILL)

    def generate(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_due():
            if after % 2 == 0:
                kill_engine()
            else:
                threading.Timer(0.05, kill_engine).start()
        return original(self, *args, **kwargs)

    wrap(vllm_engine.LocalEngine, "generate", generate)


def children(parent: int) -> list[int]:
    """Process ids of the children, without multiprocessing's resource tracker."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                owner = int(file.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{entry}/cmdline") as file:
                is_tracker = "resource_tracker" in file.read()
        except OSError:
            continue
        if owner == parent and not is_tracker:
            found.append(int(entry))
    return found


PLACES = {
    "rollout": in_rollout,
    "backward": in_backward,
    "optimizer step": in_optimizer_step,
    "checkpoint write": in_checkpoint_write,
    "logs": in_logs,
    "resuming": in_resuming,
    "weight gather": in_weight_gather,
    "weight sync": in_weight_sync,
    "vllm engine": in_engine,
}
