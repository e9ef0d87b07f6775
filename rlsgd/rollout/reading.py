"""What a model says of the next token: by its cache, or by reading all tokens again."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.core.types import TokenBatch
from rlsgd.models.calling import accepts, cache_argument, call
from rlsgd.models.fast_paths import choose, fast_path
from rlsgd.models.sharding import compute_device
from rlsgd.rollout.kv_cache import GenerationCache, attention_by_groups, padding_known

CACHED, UNCACHED = "sampling with a cache", "sampling without a cache"
READERS = {
    CACHED: "",
    UNCACHED: "every token is sampled by a pass over all tokens before it, which is slow",
}


class Reader(Protocol):
    """Logits after the tokens of a batch of completions, which changes as they are sampled."""

    logits: Tensor  # [b, V]

    def repeat(self, prompt_of_row: Tensor) -> None:
        """Row i becomes a completion of prompt `prompt_of_row[i]`, which is on the CPU."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Row i becomes what row `rows[i]` was, for distinct rows."""
        ...

    def read(self, tokens: Tensor) -> None:
        """Every row goes on by a token [b]."""
        ...


class CachedReader:
    """Reads prompts once and then token by token.

    Args:
        policy: model in eval mode; called under no_grad.
        input_ids: [P, T] prompts, padded on the left.
        attention_mask: [P, T] bool, False on padding.
        budget: most tokens of a completion.
    """

    def __init__(
        self, policy: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, budget: int
    ) -> None:
        self.policy, self.device = policy, compute_device(policy)
        argument = cache_argument(policy)
        if argument is None:
            raise ValueError(f"{type(policy).__name__} takes no cache")
        self.argument = argument
        self.width, self.step, self.budget = input_ids.shape[1], 0, budget
        self.cache = GenerationCache(policy.config, self.width + budget - 1)
        self.whole: list[bool] = attention_mask.all(1).tolist()  # rows without padding
        input_ids = input_ids.to(self.device, non_blocking=True)
        mask = attention_mask.long().to(self.device, non_blocking=True)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.logits = self._next(input_ids, mask, positions)
        self.mask, self.positions = mask, positions  # of the next token, once rows are repeated

    def repeat(self, prompt_of_row: Tensor) -> None:
        self.whole = [self.whole[prompt] for prompt in prompt_of_row.tolist()]
        prompt_of_row = prompt_of_row.to(self.device, non_blocking=True)
        self.cache.reorder_cache(prompt_of_row)  # pyright: ignore[reportArgumentType]
        self.logits, mask = self.logits[prompt_of_row], self.mask[prompt_of_row]
        self.positions = mask.sum(1, keepdim=True)
        self.mask = torch.nn.functional.pad(mask, (0, self.budget), value=1)

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(rows, self.device)
        self.whole = [self.whole[row] for row in rows]
        index = torch.tensor(rows).to(self.device, non_blocking=True)
        self.mask, self.positions = self.mask[index], self.positions[index]

    def read(self, tokens: Tensor) -> None:
        self.step += 1
        seen = self.mask[:, : self.width + self.step]
        # a state has taken in all tokens before: only keys and values still have to be masked
        mask = None if self.argument == "cache_params" else seen
        with attention_by_groups():
            self.logits = self._next(tokens[:, None], mask, self.positions)
        self.positions = self.positions + 1

    def _next(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Logits [b, V] after the last of the tokens [b, t], which the cache takes in."""
        with padding_known(self.policy, self.cache, not all(self.whole)):
            return call(
                self.policy,
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                **{self.argument: self.cache},
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]


class UncachedReader:
    """Reads all tokens of every row again for each token; rows are padded on the right.

    Args:
        policy: model in eval mode; called under no_grad.
        input_ids: [P, T] prompts, padded on the left.
        attention_mask: [P, T] bool, False on padding.
        budget: most tokens of a completion.
    """

    def __init__(
        self, policy: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, budget: int
    ) -> None:
        self.policy = policy
        device = compute_device(policy)
        input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
        self.lengths = attention_mask.sum(1)
        order = attention_mask.long().argsort(dim=1, descending=True, stable=True)
        ids = input_ids.gather(1, order) * attention_mask.gather(1, order)
        self.ids = torch.nn.functional.pad(ids, (0, budget))
        self.logits = self._logits()

    def repeat(self, prompt_of_row: Tensor) -> None:
        prompt_of_row = prompt_of_row.to(self.ids.device)
        self.logits = self.logits[prompt_of_row]
        self.ids, self.lengths = self.ids[prompt_of_row], self.lengths[prompt_of_row]

    def keep(self, rows: list[int]) -> None:
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]

    def read(self, tokens: Tensor) -> None:
        self.ids.scatter_(1, self.lengths[:, None], tokens[:, None])
        self.lengths = self.lengths + 1
        self.logits = self._logits()

    def _logits(self) -> Tensor:
        width = int(self.lengths.max())
        columns = torch.arange(width, device=self.ids.device)
        last, place = (self.lengths - 1).unique(return_inverse=True)
        logits: Any = call(
            self.policy,
            input_ids=self.ids[:, :width],
            attention_mask=(columns < self.lengths[:, None]).long(),
            position_ids=columns.expand(len(self.ids), -1),
            use_cache=False,
            logits_to_keep=last,
        ).logits
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, place if accepts(self.policy, "logits_to_keep") else self.lengths - 1]


def prove_sampling(policy: PreTrainedModel, length: int = 0) -> str:
    """`CACHED` or `UNCACHED`, whichever the model computes right for rows of this length at most.

    Raises:
        ValueError: the model's distribution of a token depends on later tokens or on other rows.
    """
    fix = "it cannot be sampled in batches; use another model, or shorter prompts and completions"
    return choose(policy, READERS, flag="--model.policy", fix=fix, length=length)


def make_reader(
    policy: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, budget: int
) -> Reader:
    """The reader that computes this model right, see `prove_sampling`."""
    kind = prove_sampling(policy, input_ids.shape[1] + budget)
    make = CachedReader if kind == CACHED else UncachedReader
    return make(policy, input_ids, attention_mask, budget)


@fast_path(CACHED, train_mode=False, gradients=False)
def _cached(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return _scores(CachedReader, model, batch)


@fast_path(UNCACHED, train_mode=False, gradients=False)
def _uncached(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return _scores(UncachedReader, model, batch)


def _scores(
    reader_class: type[CachedReader | UncachedReader], model: PreTrainedModel, batch: TokenBatch
) -> Tensor:
    """Log-probabilities [S] of tokens that are given, read as if they were sampled."""
    start = int(batch.completion_mask.long().argmax(1)[0])  # every completion begins here
    prompts, leaders = torch.unique_consecutive(batch.input_ids[:, :start], dim=0), [0]
    group = torch.zeros(len(batch), dtype=torch.long)
    for row in range(1, len(batch)):
        same = torch.equal(batch.input_ids[row, :start], batch.input_ids[row - 1, :start])
        group[row] = group[row - 1] + (not same)
        leaders += [] if same else [row]
    completions, alive = batch.input_ids[:, start:], batch.completion_mask[:, start:]
    reader = reader_class(
        model, prompts, batch.attention_mask[leaders, :start], completions.shape[1]
    )
    reader.repeat(group)
    rows, found = torch.arange(len(batch)), torch.zeros(alive.shape, dtype=torch.float32)
    for step in range(completions.shape[1]):
        tokens = completions[rows.to(completions.device), step]
        logprobs = reader.logits.float().log_softmax(-1).gather(1, tokens[:, None])
        found[rows, step] = logprobs.squeeze(1).cpu()
        going = (alive.sum(1).cpu()[rows] > step + 1).nonzero().squeeze(1)
        if step + 1 == completions.shape[1] or not len(going):
            break
        if len(going) < len(rows):
            going = going.flip(0)  # rows may change places
            reader.keep(going.tolist())
            rows, tokens = rows[going], tokens[going.to(tokens.device)]
        reader.read(tokens)
    return found.to(alive.device)[alive]
