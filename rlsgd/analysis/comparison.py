"""Compare checkpoints on disk with the one they were tuned from, one tensor at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import combinations
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rlsgd.analysis.checkpoint_files import Opened, is_weight, not_finite
from rlsgd.analysis.measures import Measures
from rlsgd.analysis.tensor_update import (
    InitialMatrix,
    TensorUpdate,
    defined,
    measure,
    summary,
)
from rlsgd.core.layer_kinds import kind_of, layer_of
from rlsgd.core.matrices import split_experts
from rlsgd.core.stored import StoredTensors, spec_of
from rlsgd.functional.geometry import MaskOverlap, changed_in_bf16, overlap


class Comparison:
    """Every measure of checkpoints that are opened and matched.

    Args:
        opened: BASE and the others.
        measures: what to measure.
    """

    def __init__(self, opened: Opened, measures: Measures) -> None:
        self.measures = measures
        self.base_name, self.base_flag = opened.base_name, f"BASE {opened.base_name}"
        self.base, self.tuned_names, self.tuned = opened.base, opened.tuned_names, opened.tuned
        self.matches = opened.matches
        self.names = sorted({name for found in self.matches for name in found.names})

    def run(self, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Measure every tensor and return the record that becomes `analysis.json`.

        Args:
            advance: called after each of `names`.

        Raises:
            ValueError: a weight is not finite, is quantised, or cannot be read.
        """
        updates: list[dict[str, TensorUpdate]] = [{} for _ in self.tuned]
        measured: list[set[str]] = [set() for _ in self.tuned]
        dtypes: list[Counter[str]] = [Counter() for _ in self.tuned]
        base_dtypes: Counter[str] = Counter()
        pairs: dict[tuple[int, int], dict[str, MaskOverlap]] = defaultdict(dict)
        for name in self.names:
            stored = self._read(self.base, name, self.base_flag)
            base_dtypes[dtype_name(stored)] += stored.numel()
            derived: dict[
                tuple[torch.dtype, str], InitialMatrix | None
            ] = {}  # the same for several TUNED
            changed: dict[int, Tensor] = {}
            for index, weight in self._tuned_weights(name, stored):
                dtypes[index][dtype_name(weight)] += weight.numel()
                # Storage in a narrower dtype alone is no update: BASE is rounded to it first.
                dtype, initial = weight.dtype, stored.to(weight.dtype).float()
                weight = weight.float()
                parts = zip(split_experts(name, weight), split_experts(name, initial), strict=True)
                for (part, now), (_, then) in parts:
                    if (dtype, part) not in derived:
                        is_matrix = then.ndim == 2
                        found = InitialMatrix.of(then, self.measures) if is_matrix else None
                        derived[dtype, part] = found
                    matrix = derived[dtype, part]
                    updates[index][part] = measure(now, then, matrix, self.measures)
                measured[index].add(name)
                if len(self.tuned) > 1:
                    changed[index] = changed_in_bf16(weight, initial)
            for first, second in combinations(changed, 2):
                pairs[first, second][name] = overlap(changed[first], changed[second])
            advance()
        return {
            "base": {"path": self.base_name, "dtypes": dict(base_dtypes)},
            "settings": {**asdict(self.measures), "tolerances": list(self.measures.tolerances)},
            "tuned": [
                self._tuned_record(i, dtypes[i], updates[i], measured[i])
                for i in range(len(self.tuned))
            ],
            "pairs": [
                {
                    "first": self.tuned_names[first],
                    "second": self.tuned_names[second],
                    **grouped_overlaps(overlaps),
                }
                for (first, second), overlaps in sorted(pairs.items())
            ],
        }

    def _tuned_weights(self, name: str, stored: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Number of each TUNED that holds a weight of that name, and the weight as stored."""
        for index, (checkpoint, found) in enumerate(zip(self.tuned, self.matches, strict=True)):
            if name in found.names:
                flag = f"TUNED {self.tuned_names[index]}"
                weight = self._read(checkpoint, name, flag)
                if _is_finite(stored, name, self.base_flag) and _is_finite(weight, name, flag):
                    yield index, weight

    def _tuned_record(
        self,
        index: int,
        dtypes: Counter[str],
        updates: dict[str, TensorUpdate],
        measured: set[str],
    ) -> dict[str, Any]:
        path, found = self.tuned_names[index], self.matches[index]
        if not updates:
            raise ValueError(f"TUNED {path}: none of the tensors shared with BASE is a weight")
        return {
            "path": path,
            "dtypes": dict(dtypes),
            "tied_heads_left_out": found.tied,
            "only_in_base": found.only_base,
            "only_in_tuned": found.only_tuned,
            "not_measured": [name for name in found.names if name not in measured],
            **grouped(updates),
        }

    def _read(self, checkpoint: StoredTensors, name: str, flag: str) -> Tensor:
        try:
            return checkpoint.stored(name).tensor()
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"{flag}: {name} could not be read: {error}") from error


def dtype_name(tensor: Tensor) -> str:
    """`float32` for torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


def _is_finite(tensor: Tensor, name: str, flag: str) -> bool:
    """Whether a tensor is a weight.

    Raises:
        ValueError: it is quantised, or not finite.
    """
    if not is_weight(spec_of(tensor), name, flag):
        return False
    if not tensor.isfinite().all():
        raise not_finite(flag, name)
    return True


def grouped(updates: dict[str, TensorUpdate]) -> dict[str, Any]:
    """Summaries of all tensors, of each kind, of each layer, and of each tensor."""
    kinds: dict[str, list[TensorUpdate]] = defaultdict(list)
    layers: dict[str, list[TensorUpdate]] = defaultdict(list)
    for name, update in updates.items():
        kinds[kind_of(name)].append(update)
        layers[str(layer_of(name))].append(update)
    return {
        "total": summary(updates.values()),
        "kinds": {kind: summary(parts) for kind, parts in sorted(kinds.items())},
        "layers": {layer: summary(parts) for layer, parts in sorted(layers.items(), key=_number)},
        "tensors": {name: summary([update]) for name, update in updates.items()},
    }


def _number(item: tuple[str, Any]) -> tuple[bool, int]:
    return (False, int(item[0])) if item[0].isdigit() else (True, 0)


def grouped_overlaps(overlaps: dict[str, MaskOverlap]) -> dict[str, Any]:
    """The overlap of two checkpoints' changed entries, in all tensors and in each kind."""
    kinds: dict[str, MaskOverlap] = defaultdict(MaskOverlap)
    for name, part in overlaps.items():
        kinds[kind_of(name)] += part
    total = sum(overlaps.values(), MaskOverlap())
    return {
        "total": overlap_record(total),
        "kinds": {kind: overlap_record(part) for kind, part in sorted(kinds.items())},
    }


def overlap_record(part: MaskOverlap) -> dict[str, float | int | None]:
    """Shares of changed entries, and their overlap beside what chance gives.

    By chance: if each tensor's changes fell independently, with the counts that they have there.
    The share changed in the other checkpoint is what chance gives without regard to tensors.
    """
    (of_first, first_chance), (of_second, second_chance) = part.of_first(), part.of_second()
    jaccard, jaccard_chance = part.jaccard()
    found = {
        "changed_first": part.first / part.numel,
        "changed_second": part.second / part.numel,
        "overlap_of_first": of_first,
        "overlap_of_first_by_chance": first_chance,
        "overlap_of_second": of_second,
        "overlap_of_second_by_chance": second_chance,
        "jaccard": jaccard,
        "jaccard_by_chance": jaccard_chance,
    }
    return {name: defined(value) for name, value in found.items()}
