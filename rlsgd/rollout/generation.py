"""Generation token by token: prompts are read once for a group, and finished rows leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.core.distributed import global_sum
from rlsgd.functional.logprobs import draw_with_entropy, token_logprobs
from rlsgd.rollout.reading import make_reader


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn, and when a completion ends.

    Args:
        temperature: softmax temperature; 0 means the most probable token.
        max_completion_tokens: a completion has at most as many.
        stop_token_ids: a completion ends with the first of these.
        pad_token_id: filler after it.
        report_logprobs: note the log-probability of each sampled token; greedy ones have none.
        in_step: every rank makes as many forward passes as the one that needs most.
    """

    temperature: float
    max_completion_tokens: int
    stop_token_ids: list[int]
    pad_token_id: int
    report_logprobs: bool = False
    in_step: bool = False


def generate(
    policy: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    prompt_of_row: Tensor,
    uniforms: Iterator[Tensor],
    decoding: Decoding,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Complete prompts. Each is read once, however many completions it gets.

    A row's tokens depend on its prompt and its own random numbers alone, up to rounding: sums of
    another batch shape may round differently, which now and then turns a choice between tokens, the
    oftener the more of them are likely.

    Args:
        policy: in eval mode; called under no_grad.
        input_ids: [P, T] prompts, padded on the left.
        attention_mask: [P, T] bool, False on padding.
        prompt_of_row: [b] long, the prompt that each completion continues.
        uniforms: for each token [b] float64 in [0, 1), on the CPU.
        decoding: what to draw, and for how long.

    Returns:
        Tokens [b, C], padded after each one's first stop token, where C is the longest;
        log-probabilities [b, C], 0 after it, or none; and the entropy [b, C] of each token's
        distribution likewise, none for greedy ones.
    """
    device, budget = input_ids.device, decoding.max_completion_tokens
    reader = make_reader(policy, input_ids, attention_mask, budget)
    reader.repeat(prompt_of_row.to(device))

    sampled = _Sampled(len(prompt_of_row), decoding)
    waits = False  # for other ranks, with a row whose tokens nobody needs
    for step in range(1, budget + 1):
        logits = reader.logits
        uniform = next(uniforms)[sampled.rows].to(device)
        tokens, entropy = _picked(logits, uniform, decoding.temperature)
        kept = [] if waits else sampled.add(tokens, logits, entropy)
        waits = not kept
        if step == budget or not _goes_on(len(kept), device, decoding.in_step):
            break
        if len(kept) < len(tokens):
            kept = kept or [0]
            sampled.rows = sampled.rows[kept]
            reader.keep(kept)
            tokens = tokens[torch.tensor(kept, device=device)]
        reader.read(tokens)
    completion_ids, *of_tokens = sampled.all()
    logprobs, entropy = (None if x is None else x.to(device) for x in of_tokens)
    return completion_ids.to(device), logprobs, entropy


class _Sampled:
    """The tokens of all rows so far, and which rows the batch still has. On the CPU."""

    def __init__(self, rows: int, decoding: Decoding) -> None:
        self.rows = torch.arange(rows)  # what each row of the batch completes
        self.number, self.decoding = rows, decoding
        self.stops = torch.tensor(decoding.stop_token_ids, dtype=torch.long)
        self.columns: list[Tensor] = []
        self.logprobs: list[Tensor] = []
        self.entropy: list[Tensor] = []

    def add(self, tokens: Tensor, logits: Tensor, entropy: Tensor | None) -> list[int]:
        """Note one token of each row of the batch; returns the rows that go on, see `_packed`."""
        if self.decoding.report_logprobs and self.decoding.temperature > 0:
            logprobs = token_logprobs(logits, tokens, temperature=self.decoding.temperature)
            self.logprobs.append(self._column(logprobs.cpu(), 0.0))
        if entropy is not None:
            self.entropy.append(self._column(entropy.cpu(), 0.0))
        tokens = tokens.cpu()
        self.columns.append(self._column(tokens, self.decoding.pad_token_id))
        return _packed((~torch.isin(tokens, self.stops)).tolist())

    def _column(self, values: Tensor, filler: float) -> Tensor:
        return torch.full((self.number,), filler, dtype=values.dtype).scatter(0, self.rows, values)

    def all(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens [b, C]; their log-probabilities where these are reported; entropy if any."""
        logprobs, entropy = (
            torch.stack(columns, 1) if columns else None
            for columns in (self.logprobs, self.entropy)
        )
        return torch.stack(self.columns, 1), logprobs, entropy


def _packed(alive: list[bool]) -> list[int]:
    """The live rows, of which those from the end take the places of finished ones before them.

    >>> _packed([True, False, True, True])
    [0, 3, 2]
    """
    number = sum(alive)
    from_the_end = [row for row in range(number, len(alive)) if alive[row]]
    return [row if alive[row] else from_the_end.pop() for row in range(number)]


def _goes_on(rows: int, device: torch.device, in_step: bool) -> bool:
    """Whether any row is unfinished, here or, `in_step`, on any rank."""
    return bool(global_sum(torch.tensor(rows, device=device)) if in_step else rows)


def _picked(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
    if temperature == 0:
        return logits.argmax(-1), None
    return draw_with_entropy(logits, uniforms, temperature=temperature)
