"""The limit: operations that an iteration needs, and the rate at which this machine multiplies.

A multiplication and an addition are two operations. Counted are the products of the layers, of
attention and of the head, nothing else. Needed are: each completion's tokens but the last, whose
logits nobody asks for; attention to the tokens before, not to those after; the head where a token
is sampled or scored; for the update three times the forward pass (the gradients of inputs and of
weights are products of the same size).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SQUARE = (2048, 2048, 2048)


@dataclass(frozen=True)
class Shape:
    """Of a Llama or Qwen3: sizes of what its products are made of.

    Attributes:
        layers: number of them.
        hidden: size of the residual stream.
        query: of all query heads together.
        key_value: of all key heads together, and of all value heads.
        inner: of the gated MLP.
        vocabulary: logits.
    """

    layers: int
    hidden: int
    query: int
    key_value: int
    inner: int
    vocabulary: int

    @classmethod
    def of(cls, folder: str | Path) -> Shape:
        """The shape of a model's folder."""
        config = json.loads((Path(folder) / "config.json").read_text())
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            query=head * heads,
            key_value=head * config.get("num_key_value_heads", heads),
            inner=config["intermediate_size"],
            vocabulary=config["vocab_size"],
        )

    def body(self, tokens: int) -> int:
        """Operations of the layers' weights on so many tokens."""
        attention = self.hidden * (2 * self.query + 2 * self.key_value)
        return 2 * self.layers * (attention + 3 * self.hidden * self.inner) * tokens

    def attention(self, start: int, tokens: int) -> int:
        """Operations of tokens that follow `start` others, each with those before and itself."""
        keys = tokens * start + tokens * (tokens + 1) // 2
        return 2 * self.layers * 2 * self.query * keys  # scores, and the weighted sum of values

    def head(self, columns: int) -> int:
        """Operations of the logits of so many tokens."""
        return 2 * self.hidden * self.vocabulary * columns


def needed(
    shape: Shape, prompt_tokens: Sequence[int], group: int, completion_tokens: int, *, shared: bool
) -> dict[str, int]:
    """Operations of one iteration.

    Args:
        shape: of the model.
        prompt_tokens: length of each prompt.
        group: completions of each.
        completion_tokens: of each completion.
        shared: whether a prompt is computed once, or once for each of its completions.

    Returns:
        `prefill`, `decode` and `update`, and their sum, `total`.
    """
    times = 1 if shared else group  # that a prompt, and the logits after it, are computed
    rows, follow = len(prompt_tokens) * group, completion_tokens - 1
    prompts = times * sum(shape.body(p) + shape.attention(0, p) for p in prompt_tokens)
    first = times * shape.head(len(prompt_tokens))
    completions = shape.body(rows * follow) + shape.head(rows * follow)
    completions += group * sum(shape.attention(p, follow) for p in prompt_tokens)
    found = {
        "prefill": prompts + first,
        "decode": completions,
        "update": 3 * (prompts + first + completions),
    }
    return found | {"total": sum(found.values())}


def products(
    shape: Shape, prompt_tokens: Sequence[int], group: int, completion_tokens: int
) -> dict[str, tuple[int, int, int]]:
    """The largest products [m, k] x [k, n] of an iteration by their names, and a square one."""
    rows = len(prompt_tokens) * group
    tokens = sum(prompt_tokens) + rows * (completion_tokens - 1)
    return {
        "square": SQUARE,
        "update, MLP": (tokens, shape.hidden, shape.inner),
        "update, head": (rows * completion_tokens, shape.hidden, shape.vocabulary),
        "decode, MLP": (rows, shape.hidden, shape.inner),
        "decode, head": (rows, shape.hidden, shape.vocabulary),
    }


def rate(m: int, k: int, n: int, seconds: float = 0.5) -> float:
    """Operations a second of a float32 product [m, k] x [k, n], the best of many.

    Args:
        m: rows of what `nn.Linear` is given.
        k: its inputs.
        n: its outputs.
        seconds: that are spent on it.
    """
    import torch

    left, weight = torch.randn(m, k), torch.randn(n, k)
    torch.nn.functional.linear(left, weight)
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 5:
        start = time.perf_counter()
        torch.nn.functional.linear(left, weight)
        taken.append(time.perf_counter() - start)
    return 2 * m * k * n / min(taken)


def limit(operations: dict[str, int], rates: dict[str, float], seconds: float) -> dict[str, Any]:
    """What an iteration that took `seconds` reached of the limit.

    Args:
        operations: as from `needed`.
        rates: by the names of `products`.
        seconds: of the iteration.

    Returns:
        `rate`, the best of them; `least_seconds` at that rate, and their `share` of `seconds`.
    """
    best = max(rates.values())
    least = operations["total"] / best
    return {"rate": best, "least_seconds": least, "share": least / seconds}
