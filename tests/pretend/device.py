"""A pretend device: tensors in the CPU's memory that say they are elsewhere.

As on a GPU, an operation on tensors of two devices raises, values cross by copies alone, and
whatever makes the CPU wait for the device is counted. It is torch's backend for others
(PrivateUse1) in Python, and a process that has called `install` keeps it: tests have it in
processes of their own.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
# how large the result is, or which way the CPU goes on, depends on values on the device
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
}
INDEXING = (aten.index, aten.index_put, aten.index_put_)
# by phase and by the line of rlsgd that asked
waits: Counter[tuple[str, str]] = Counter()


class PretendTensor(Tensor):
    """A tensor on the pretend device; `held` is where its values are."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> PretendTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=torch.device(NAME, 0),
            requires_grad=real.requires_grad,
        )
        tensor.held = real
        return tensor

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"pretend({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file, as after torch.load with the CPU as its map location."""
        waits[where()] += 1
        return self.held.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        waits[where()] += 1
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the values, wrapped again where its result is on the device."""
    leaves = [x for x in _leaves([*args, *kwargs.values()]) if isinstance(x, Tensor)]
    here = [x for x in leaves if isinstance(x, PretendTensor)]
    target = kwargs.get("device")
    asked = None if target is None else torch.device(target).type == NAME
    if not here and not asked:
        return func(*args, **kwargs)
    if func not in COPIES and here:
        # numbers may come from the CPU, as an operation's argument
        foreign = [x for x in leaves if not isinstance(x, PretendTensor) and x.ndim]
        if foreign and func.overloadpacket in INDEXING and isinstance(args[0], PretendTensor):
            foreign = [x for x in foreign if not any(x is index for index in args[1])]
            waits[where()] += not foreign
        if foreign or asked is False:
            raise RuntimeError(f"{func}: tensors on two devices, {NAME} and the CPU")
    crosses = (
        func in COPIES
        and args[0].numel()
        and (len(here) < len(leaves) or (asked is not None and asked != bool(here)))
    )
    if (crosses and not _blocks_not(func, args, kwargs)) or func in WAITS or _masks(func, args):
        waits[where()] += 1
    real_args = [_real(x) for x in args]
    real_kwargs = {name: _real(x) for name, x in kwargs.items()}
    if asked is not None:
        real_kwargs["device"] = torch.device("cpu")
        if func is aten._to_copy.default and crosses:  # a copy, also where "cpu" is already there
            real_kwargs.pop("non_blocking", None)
    out = func(*real_args, **real_kwargs)
    on_device = asked if asked is not None else True
    if func is aten.copy_.default:
        return args[0]
    if func is aten._local_scalar_dense.default or func is aten.equal.default or not on_device:
        return out
    wrapped = type(out)(map(_wrapped, out)) if isinstance(out, list | tuple) else _wrapped(out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped


def _blocks_not(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """To the device without waiting: memory that is not pinned is read before the call returns."""
    if func is aten.copy_.default:
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        return bool(non_blocking) and isinstance(args[0], PretendTensor)
    return bool(kwargs.get("non_blocking")) and not isinstance(args[0], PretendTensor)


def _masks(func: Any, args: Any) -> bool:
    """Indexing by booleans asks how many are true."""
    if func.overloadpacket not in INDEXING:
        return False
    return any(x is not None and x.dtype == torch.bool for x in args[1])


def where() -> tuple[str, str]:
    """The phase of an iteration, and the project's innermost line."""
    frames = [
        (frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno)
        for frame, _ in traceback.walk_stack(sys._getframe(1))
    ]
    own = [f for f in frames if "/rlsgd/" in f[0] and "/tests/" not in f[0]]
    functions = {name for _, name, _ in frames}
    if any("/rlsgd/callbacks/" in file for file, *_ in own):
        phase = "diagnostics"
    elif "prove_sampling" in functions:
        phase = "other"
    elif "generate" in functions:
        phase = "tokens"
    elif "sample_and_score" in functions or "rollout" in functions:
        phase = "rollout"
    elif any(file.endswith("training_epoch_loop.py") for file, *_ in frames):
        phase = "update"
    else:
        phase = "other"
    file, name, line = own[0] if own else frames[0]
    return phase, f"{file.rpartition('/rlsgd/')[2]}:{line} {name}"


def _leaves(values: Any) -> list[Any]:
    """Arguments of an operation: single ones, and lists of tensors."""
    found: list[Any] = []
    for x in values:
        found.extend(x) if isinstance(x, list | tuple) else found.append(x)
    return found


def _real(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return [_real(one) for one in x]
    return x.held if isinstance(x, PretendTensor) else x


def _wrapped(x: Any) -> Any:
    return PretendTensor(x) if type(x) is Tensor else x


class _Module:
    """`torch.pretend`, what torch asks of a backend."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    @staticmethod
    def is_initialized() -> bool:
        return True

    is_available = is_initialized

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def set_device(device: Any) -> None: ...

    @staticmethod
    def manual_seed_all(seed: int) -> None: ...

    @staticmethod
    def synchronize(device: Any = None) -> None:
        waits[where()] += 1

    @staticmethod
    def get_rng_state(device: Any = None) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = None) -> None: ...

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _empty(size: Any, *, dtype: Any = None, **options: Any) -> PretendTensor:
    return PretendTensor(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **options: Any) -> PretendTensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return run(aten.copy_.default, (target, source, non_blocking), {})


# what CUDA's autocast computes in the lower dtype, as far as language models have it
LOWERED = ("linear", "mm", "bmm", "matmul", "addmm", "scaled_dot_product_attention")
AUTOCAST = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
AUTOCAST_OPS = torch.library.Library("aten", "IMPL")


def _lowered(func: Any) -> Any:
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def lowered(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME)

        def cast(x: Any) -> Any:
            floating = isinstance(x, Tensor) and x.dtype == torch.float32
            return x.to(dtype) if floating else x

        with torch._C._ExcludeDispatchKeyGuard(key):
            return func(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})

    return lowered


LIBRARY = torch.library.Library("aten", "IMPL")


def install() -> None:
    """Have the device from now on, in this process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
    AUTOCAST.fallback(torch.library.fallthrough_kernel)
    for name in LOWERED:
        AUTOCAST_OPS.impl(name, _lowered(getattr(aten, name).default), "AutocastPrivateUse1")
    LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
    LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
