"""One way of scoring a few short rows against the plain way, on the model that is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsgd.core.types import TokenBatch
from rlsgd.models.calling import accepts, call
from rlsgd.models.probing import probing
from rlsgd.models.sharding import compute_device, is_sharded

Score = Callable[[PreTrainedModel, TokenBatch], Tensor]
GRADIENT_WEIGHTS = 1 << 22
"""Gradients are compared for the smallest parameters of the model, up to so many weights."""


@dataclass(frozen=True)
class Verdict:
    """How far a path is from the plain way.

    Args:
        difference: largest difference of a token's log-probability, in nats, or of another number.
        gradient_difference: largest difference of a gradient, in parts of its tensor's largest.
        tolerance: what rounding explains.
        gradient_tolerance: in parts.
        error: what went wrong instead, with its type.
        length: tokens of the longest row compared.
        unit: of difference and tolerance.
    """

    difference: float = 0.0
    gradient_difference: float = 0.0
    tolerance: float = 0.0
    gradient_tolerance: float = 0.0
    error: str = ""
    length: int = 0
    unit: str = "nats"

    @property
    def holds(self) -> bool:
        return (
            not self.error
            and self.difference <= self.tolerance
            and self.gradient_difference <= self.gradient_tolerance
        )

    def __str__(self) -> str:
        if self.error:
            return f"fails ({self.error})"
        if not self.difference <= self.tolerance:
            return (
                f"differs from the plain pass by {self.difference:.2g} {self.unit} in rows of "
                f"{self.length} tokens (rounding explains {self.tolerance:.1g})"
            )
        return f"has gradients that differ by {self.gradient_difference:.2g} of the largest"


def plain_scores(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Log-probabilities [S] of the completion tokens: each row alone, its token ids and no more."""
    scores = []
    for ids, attended, scored in zip(
        batch.input_ids, batch.attention_mask, batch.completion_mask, strict=True
    ):
        row, wanted = ids[attended], scored[attended]
        first = int(wanted.long().argmax())
        last = len(row) - first + 1  # positions from the one that predicts the first
        few = {"logits_to_keep": last} if accepts(model, "logits_to_keep") else {}
        logits = call(model, input_ids=row[None], use_cache=False, **few).logits[0, -last:-1]
        logprobs = logits.float().log_softmax(-1)
        scores.append(logprobs.gather(1, row[first:, None]).squeeze(1)[wanted[first:]])
    return torch.cat(scores)


def probe_batch(model: PreTrainedModel, threshold: int) -> TokenBatch:
    """Two completions of one prompt and two of others, of unequal lengths, padded on both sides.

    Args:
        model: its vocabulary is used.
        threshold: prompts are longer and shorter by 2 tokens, where it is not 0; one is of a token.
    """
    embedding: Any = model.get_input_embeddings()
    vocabulary = int(embedding.num_embeddings)
    long, middle = (threshold + 2, max(threshold - 2, 2)) if threshold else (5, 3)
    prompts, completions = (long, long, middle, 1), (4, 2, 3, 4)
    width = max(prompts) + max(completions)
    draw = torch.Generator().manual_seed(7)
    # no low ids, among which are padding and other special tokens
    low = min(8, vocabulary // 2)
    input_ids = torch.randint(low, vocabulary, (4, width), generator=draw)
    attention_mask = torch.zeros(4, width, dtype=torch.bool)
    completion_mask = attention_mask.clone()
    for row, (before, after) in enumerate(zip(prompts, completions, strict=True)):
        attention_mask[row, long - before : long + after] = True
        completion_mask[row, long : long + after] = True
    input_ids[1, :long] = input_ids[0, :long]
    input_ids[~attention_mask] = 0
    batch = TokenBatch(input_ids, attention_mask, completion_mask)
    return batch.to(compute_device(model))


class Plain(NamedTuple):
    """The way that others have to equal.

    Args:
        score: see `FastPath`; each row alone, its token ids and no more, in eval mode.
        unit: of the scores, in messages.
        is_relative: differences are in parts of the largest score; otherwise as they are.
    """

    score: Score
    unit: str = "nats"
    is_relative: bool = False


PLAIN = Plain(plain_scores)


class FastPath(NamedTuple):
    """A way of scoring that has to equal the plain one, and how it is used.

    Args:
        score: log-probabilities [S] at temperature 1 of a batch's completion tokens, row by row, or
            the numbers of another plain way.
        train_mode: the mode that the way is used in.
        gradients: whether it is differentiated.
        plain: what it is compared with.
    """

    score: Score
    train_mode: bool = True
    gradients: bool = True
    plain: Plain = PLAIN


def compare(model: PreTrainedModel, path: FastPath, *, threshold: int) -> Verdict:
    """Compare a way of scoring with the plain one on the model that is given, and leave it as it
    was. For `threshold` see `probe_batch`."""
    with probing(model) as mode:
        leaves = _gradient_leaves(model) if path.gradients else []
        length = 0
        try:
            batch = probe_batch(model, threshold)
            length = int(batch.attention_mask.sum(1).max())
            mode(False)
            with _own_kernels(model):
                plain, expected = _scores(model, path.plain.score, batch, leaves)
            mode(path.train_mode)
            scores, found = _scores(model, path.score, batch, leaves)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model's code raises, the path is not for it
            text = str(error).strip().partition("\n")[0][:200]
            return Verdict(error=f"{type(error).__name__}: {text}", length=length)
        eps = torch.finfo(_narrowest(model, plain)).eps
        difference, largest = _largest(scores - plain), _largest(plain)
        if path.plain.is_relative:
            difference, largest = difference / (largest or 1.0), 1.0
        return Verdict(
            difference=difference,
            tolerance=eps**0.5 * max(1.0, largest),
            gradient_difference=_gradient_difference(found, expected),
            gradient_tolerance=4 * eps**0.5,
            length=length,
            unit=path.plain.unit,
        )


@contextmanager
def _own_kernels(model: PreTrainedModel) -> Iterator[None]:
    """While inside, linear layers compute as their class says."""
    replaced = [
        (module, module.__dict__.pop("forward"))
        for module in model.modules()
        if isinstance(module, nn.Linear) and "forward" in module.__dict__
    ]
    try:
        yield
    finally:
        for module, forward in replaced:
            module.forward = forward


def _scores(
    model: PreTrainedModel, score: Score, batch: TokenBatch, leaves: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    with torch.set_grad_enabled(bool(leaves)):
        scores = score(model, batch)
        if not leaves:
            return scores.float(), []
        slopes = torch.linspace(-1, 2, len(scores), device=scores.device)
        found = torch.autograd.grad((slopes * scores).sum(), leaves, allow_unused=True)
    zeros = (torch.zeros_like(leaf) for leaf in leaves)
    gradients = [zero if g is None else g for g, zero in zip(found, zeros, strict=True)]
    return scores.detach().float(), gradients


def _gradient_leaves(model: PreTrainedModel) -> list[Tensor]:
    """The smallest trained parameters. None of a sharded model: FSDP2 has gradients reduced by
    hooks of `backward`, which would leave them in the parameters."""
    if is_sharded(model):
        return []
    trained = sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: p.numel())
    total, leaves = 0, []
    for parameter in trained:
        total += parameter.numel()
        if total > GRADIENT_WEIGHTS:
            break
        leaves.append(parameter)
    return leaves


def _gradient_difference(gradients: list[Tensor], expected: list[Tensor]) -> float:
    if not expected:
        return 0.0
    sizes = [_largest(gradient) for gradient in expected]
    floor = 1e-2 * max(sizes) or 1.0  # below it, a tensor's gradient is sums that cancel
    return max(
        _largest(one - other) / max(size, floor)
        for one, other, size in zip(gradients, expected, sizes, strict=True)
    )


def _largest(values: Tensor) -> float:
    """The largest magnitude; infinite if one is not a number."""
    return float(values.abs().nan_to_num(torch.inf).max()) if values.numel() else 0.0


def _narrowest(model: PreTrainedModel, scores: Tensor) -> torch.dtype:
    """The dtype that rounds the most: of weights, or of what a sharded model gathers them in."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    for part in model.modules():
        policy = getattr(getattr(part, "_get_fsdp_state", lambda: None)(), "_mp_policy", None)
        if dtype := getattr(policy, "param_dtype", None):
            dtypes.add(dtype)
    return max(dtypes | {scores.dtype}, key=lambda dtype: torch.finfo(dtype).eps)
