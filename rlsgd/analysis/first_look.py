"""The first table of `rlsgd analyze`: how many weights changed, counted before anything is slow.

The counts are those of `functional.updates.count_unchanged`, taken on the files' bytes without
importing torch, which would take longer than the counting.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from rlsgd.analysis.checkpoint_files import Match, is_weight, not_finite
from rlsgd.core.layer_kinds import kind_of
from rlsgd.core.stored import Stored, StoredTensors

_CHUNK = 1 << 16  # entries whose temporaries stay in a CPU's cache
_MEASURES = ("unchanged_fp32", "unchanged_bf16")


def first_look(
    base: StoredTensors, tuned: StoredTensors, match: Match, flags: tuple[str, str]
) -> dict[str, Any]:
    """Count the weights of one TUNED that are where they were.

    Args:
        base: what was tuned.
        tuned: what became of it.
        match: the tensors they share.
        flags: BASE and TUNED as the user wrote them, for errors.

    Returns:
        `kinds` by name and `total`, each with `weights`, `unchanged_fp32`, `unchanged_bf16`,
        `displacement` and `relative_displacement`, as `analysis.json` has them.

    Raises:
        ValueError: a weight is quantised, not finite or cannot be read, or nothing is a weight.
    """
    kinds: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(5))
    for name in match.names:
        pair = zip((tuned, base), reversed(flags), strict=True)
        now, then = (_read(tensors, name, flag) for tensors, flag in pair)
        if now is None or then is None:
            continue
        counted = count(now, then.rounded(now.spec.dtype))
        if not math.isfinite(counted[3]) or not math.isfinite(counted[4]):
            raise not_finite(flags[bool(math.isfinite(counted[4]))], name)
        kinds[kind_of(name)] += counted
    if not kinds:
        raise ValueError(f"{flags[1]}: none of the tensors shared with BASE is a weight")
    return {
        "kinds": {kind: _record(counted) for kind, counted in sorted(kinds.items())},
        "total": _record(sum(kinds.values(), np.zeros(5))),
    }


def _read(tensors: StoredTensors, name: str, flag: str) -> Stored | None:
    """The tensor if it is a weight."""
    if not is_weight(tensors.spec(name), name, flag):
        return None
    try:
        return tensors.stored(name)
    except OSError as error:
        raise ValueError(f"{flag}: {name} could not be read: {error}") from error


def count(now: Stored, then: Stored) -> np.ndarray:
    """[5] float64: entries; those equal in float32 and in bfloat16; |now - then|^2 and |then|^2.

    Args:
        now: floating.
        then: of the same shape and dtype.
    """
    if now.spec.dtype not in ("BF16", "F32"):
        now, then = now.rounded("F32"), then.rounded("F32")
    total = np.zeros(5)
    for start in range(0, now.spec.numel, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        total += _count_chunk(now.words[chunk], then.words[chunk])
    return total


def _count_chunk(now: np.ndarray, then: np.ndarray) -> np.ndarray:
    differ = np.flatnonzero(now != then)
    changed, before = now[differ], then[differ]
    equal = len(now) - len(differ)  # by their bits; of the rest, zeros of either sign are equal too
    same_fp32 = equal + np.count_nonzero(_numbers(changed) == _numbers(before))
    same_bf16 = equal + np.count_nonzero(_bf16(changed) == _bf16(before))
    initial = _numbers(then).astype(np.float64)
    move = _numbers(changed).astype(np.float64) - initial[differ]
    return np.array([len(now), same_fp32, same_bf16, move @ move, initial @ initial])


def _numbers(words: np.ndarray) -> np.ndarray:
    """float32 of the bits of bfloat16 or float32."""
    wide = words.astype(np.uint32) << np.uint32(16) if words.itemsize == 2 else words
    return wide.view(np.float32)


def _bf16(words: np.ndarray) -> np.ndarray:
    """float32 of the nearest bfloat16 number, to even where two are as near."""
    if words.itemsize == 2:
        return _numbers(words)
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def _record(counted: np.ndarray) -> dict[str, float | int]:
    weights, same_fp32, same_bf16, moved, initial = counted.tolist()
    record = {
        "weights": int(weights),
        "unchanged_fp32": same_fp32 / weights,
        "unchanged_bf16": same_bf16 / weights,
        "displacement": math.sqrt(moved),
    }
    return record | ({"relative_displacement": math.sqrt(moved / initial)} if initial else {})
