"""Trying a model out without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

_NOTES = (int, float, Tensor)
_PROBED: WeakSet[nn.Module] = WeakSet()


def is_probed(module: nn.Module) -> bool:
    """Whether a module computes for `probing` now: a hook that measures looks away."""
    return module in _PROBED


@contextmanager
def probing(model: nn.Module) -> Iterator[Callable[[bool], None]]:
    """Compute with a model; afterwards it is as it was, and so are the global random numbers.

    Inside there is no autocast, and products of float32 are exact to float32. What a model notes
    on its modules on the way (buffers of rotary angles, recurrent states) is taken back.

    Yields:
        A function that sets the train mode of all modules.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    notes = [_notes(module) for module in modules]
    buffers = [(module, name, b, b.clone()) for module in modules for name, b in _buffers(module)]
    precision = torch.get_float32_matmul_precision()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    devices = [device] if device.type not in ("cpu", "meta") else []
    kind = device.type if devices else "cuda"

    def set_mode(training: bool) -> None:
        model.train(training)

    _PROBED.update(modules)
    try:
        torch.set_float32_matmul_precision("highest")
        with (
            torch.random.fork_rng(devices, device_type=kind),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type if devices else "cpu", enabled=False),
        ):
            yield set_mode
    finally:
        _PROBED.difference_update(modules)
        torch.set_float32_matmul_precision(precision)
        for module, mode in zip(modules, modes, strict=True):
            if module.training != mode:
                module.training = mode
        for module, note in zip(modules, notes, strict=True):
            for name in _notes(module).keys() - note.keys():
                del module.__dict__[name]
            module.__dict__.update(note)
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in module._buffers.items() if buffer is not None]


def _notes(module: nn.Module) -> dict[str, Any]:
    """Numbers and tensors among a module's attributes, but no switches."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _NOTES) and not isinstance(value, bool)
    }
