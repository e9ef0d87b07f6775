"""Generation token by token: prompts are read once for a group, and finished rows leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.core.distributed import global_sum
from rlsgd.functional.logprobs import draw_tokens, draw_with_entropy, token_logprobs
from rlsgd.models.sharding import compute_device
from rlsgd.rollout.reading import make_reader

# Tokens between two looks at what was drawn. A look makes the CPU wait for the device, and so the
# device for what the CPU calls next; a row that has ended meanwhile is read for nothing, 8 tokens
# on average of hundreds. A CPU waits for nobody: there a row leaves as soon as it ends.
LOOK_EVERY = 16

Drawn = tuple[Tensor, Tensor | None, Tensor | None]  # tokens, their log-probabilities, entropy: [b]


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn, and when a completion ends.

    Args:
        temperature: softmax temperature; 0 means the most probable token.
        max_completion_tokens: a completion has at most as many.
        stop_token_ids: a completion ends with the first of these.
        pad_token_id: filler after it.
        report_logprobs: note the log-probability of each sampled token; greedy ones have none.
        report_entropy: note the entropy of each token's distribution; greedy ones have none.
        in_step: every rank makes as many forward passes as the one that needs most.
    """

    temperature: float
    max_completion_tokens: int
    stop_token_ids: list[int]
    pad_token_id: int
    report_logprobs: bool = False
    report_entropy: bool = False
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
        input_ids: [P, T] prompts, padded on the left, best on the CPU.
        attention_mask: [P, T] bool, False on padding, beside them.
        prompt_of_row: [b] long, the prompt that each completion continues.
        uniforms: for each token [b] float64 in [0, 1), on the CPU.
        decoding: what to draw, and for how long.

    Returns:
        Tokens [b, C], padded after each one's first stop token, where C is the longest;
        log-probabilities [b, C], 0 after it, or none; and the entropy [b, C] of each token's
        distribution likewise.
    """
    device, budget = compute_device(policy), decoding.max_completion_tokens
    every = _look_every(device)
    reader = make_reader(policy, input_ids, attention_mask, budget)
    reader.repeat(prompt_of_row)

    sampled = _Sampled(len(prompt_of_row), decoding)
    waits = False  # for other ranks, with a row whose tokens nobody needs
    for start in range(0, budget, every):
        block: list[Drawn] = []
        numbers = [next(uniforms)[sampled.rows] for _ in range(min(every, budget - start))]
        for uniform in torch.stack(numbers).to(device, non_blocking=True):
            if block:
                reader.read(block[-1][0])
            block.append(_drawn(reader.logits, uniform, decoding))
        tokens = block[-1][0]
        kept = [] if waits else sampled.add(block)
        waits = not kept
        if start + len(block) == budget or not _goes_on(len(kept), device, decoding.in_step):
            break
        if len(kept) < len(tokens):
            kept = kept or [0]
            sampled.rows = sampled.rows[kept]
            reader.keep(kept)
            tokens = tokens[torch.tensor(kept).to(device, non_blocking=True)]
        reader.read(tokens)
    return sampled.all(device)


class _Sampled:
    """The tokens of all rows so far, on the CPU, and which rows the batch still has.

    Numbers of tokens stay on their device until all are there.
    """

    def __init__(self, rows: int, decoding: Decoding) -> None:
        self.rows = torch.arange(rows)  # what each row of the batch completes
        self.number, self.decoding = rows, decoding
        self.stops = torch.tensor(decoding.stop_token_ids, dtype=torch.long)
        self.blocks: list[tuple[Tensor, Tensor, list[Drawn]]] = []  # rows, alive, what was drawn
        self.tokens: list[Tensor] = []

    def add(self, block: list[Drawn]) -> list[int]:
        """Note tokens of each row of the batch; returns the rows that go on, see `_packed`."""
        tokens = torch.stack([drawn[0] for drawn in block], 1).cpu()  # the one wait of a block
        stopped = torch.isin(tokens, self.stops).cumsum(1) > 0
        alive = torch.nn.functional.pad(~stopped[:, :-1], (1, 0), value=True)
        self.tokens.append(torch.where(alive, tokens, self.decoding.pad_token_id))
        self.blocks.append((self.rows, alive, block))
        return _packed((~stopped[:, -1]).tolist())

    def all(self, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens [b, C]; their log-probabilities and the entropy where these are reported."""
        columns = [block for *_, block in self.blocks]
        longest = sum(map(len, columns[:-1])) + int(self.blocks[-1][1].any(0).sum())
        tokens = torch.full((self.number, longest), self.decoding.pad_token_id)
        values: list[Tensor | None] = [
            None if x is None else torch.zeros(self.number, longest, dtype=x.dtype, device=device)
            for x in columns[0][0][1:]
        ]
        start = 0
        for ids, (rows, alive, block) in zip(self.tokens, self.blocks, strict=True):
            end = min(start + len(block), longest)
            tokens[rows, start:end] = ids[:, : end - start]
            there = [x.to(device, non_blocking=True) for x in (rows, alive)]
            for place, whole in enumerate(values, 1):
                if whole is not None:
                    found = torch.stack([drawn[place] for drawn in block], 1)  # pyright: ignore
                    found = torch.where(there[1], found, 0.0)
                    whole[there[0], start:end] = found[:, : end - start]
            start = end
        return tokens.to(device, non_blocking=True), values[0], values[1]


def _look_every(device: torch.device) -> int:
    return 1 if device.type == "cpu" else LOOK_EVERY


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


def _drawn(logits: Tensor, uniforms: Tensor, decoding: Decoding) -> Drawn:
    temperature = decoding.temperature
    if temperature == 0:
        return logits.argmax(-1), None, None
    entropy = logprobs = None
    if decoding.report_entropy:
        tokens, entropy = draw_with_entropy(logits, uniforms, temperature=temperature)
    else:
        tokens = draw_tokens(logits, uniforms, temperature=temperature)
    if decoding.report_logprobs:
        logprobs = token_logprobs(logits, tokens, temperature=temperature)
    return tokens, logprobs, entropy
