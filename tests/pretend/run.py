"""Runs commands of rlsgd on the pretend device: a JSON list of arguments a line, an answer a line.

An answer says how the run ended, and where it waited for the device in each phase of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry

from rlsgd.cli.main import main
from rlsgd.rollout.vllm.weight_sync import WeightSync
from tests.pretend.device import NAME, install, waits


class PretendAccelerator(Accelerator):
    """One device."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def on_device(arguments: list[str]) -> dict[str, Any]:
    """One run: its exit status, what it printed, and its waits by phase and line."""
    waits.clear()
    printed = io.StringIO()
    where = ["--trainer.accelerator", NAME, "--trainer.devices", "1"]
    where += ["--trainer.strategy", "lightning.pytorch.strategies.SingleDeviceStrategy"]
    where += ["--trainer.strategy.init_args.device", f"{NAME}:0"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([*arguments, *where])
    phases: dict[str, dict[str, int]] = {}
    for (phase, line), number in waits.most_common():
        phases.setdefault(phase, {})[line] = number
    return {"code": code, "printed": printed.getvalue(), "waits": phases}


def weight_sync() -> dict[str, Any]:
    """A weight changes twice; what is sent is found and kept where the weights are."""
    sync, weight = WeightSync(torch.bfloat16), torch.zeros(8, 4, device=NAME)
    sync.update({"w": weight}.items())
    changed, before = [], waits.total()
    for row in range(2):
        weight[row, 1] = 1.0
        changed.append(sync.update({"w": weight}.items()).num_changed)
    devices = sorted({tensor.device.type for tensor in sync.sent.values()})
    return {
        "changed": changed,
        "devices": devices,
        "waits": waits.total() - before,
    }


def mixed() -> dict[str, Any]:
    """What the device itself refuses and counts."""
    here, there = torch.ones(2, 2), torch.ones(2, 2, device=NAME)

    def said(work: Callable[[], Any]) -> str:
        try:
            work()
        except RuntimeError as error:
            return str(error).partition(": ")[2].partition(",")[0]
        return "nothing"

    def counted(work: Callable[[], Any]) -> int:
        before = waits.total()
        work()
        return waits.total() - before

    return {
        "sum": said(lambda: here + there),
        "matmul": said(lambda: there @ here),
        "waits": {
            "float": counted(lambda: float(there.sum())),
            "to it": counted(lambda: here.to(NAME)),
            "to it, without waiting": counted(lambda: here.to(NAME, non_blocking=True)),
            "mask": counted(lambda: there[there > 0]),
        },
    }


if __name__ == "__main__":
    AcceleratorRegistry.register(NAME, PretendAccelerator, "a pretend device")
    install()
    others = {"weight sync": weight_sync, "mixed": mixed}
    answers = sys.stdout
    for line in sys.stdin:
        arguments = json.loads(line)
        result = others[arguments[0]]() if arguments[0] in others else on_device(arguments)
        print(json.dumps(result), file=answers, flush=True)
