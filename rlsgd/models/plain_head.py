"""Whether a model's logits are those of its linear head, so that we may compute the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsgd.models.calling import call, class_name
from rlsgd.models.fast_paths import say, verdict
from rlsgd.models.probing import probing

OWN_HEAD = "computing the head in chunks"

_PLAIN_HEADS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are what a linear head computes, neither capped nor scaled afterwards.

    Found out by one forward pass of one token, in which the head says numbers that are known, and
    by the numbers of `head_logprobs` against the model's own.
    """
    if model not in _PLAIN_HEADS:
        head = model.get_output_embeddings()
        _PLAIN_HEADS[model] = isinstance(head, nn.Linear) and _passes_on(model, head)
        if _PLAIN_HEADS[model] and not (found := verdict(model, OWN_HEAD)).holds:
            _PLAIN_HEADS[model] = False
            say(model, f"{class_name(model)}: {OWN_HEAD} {found}; all logits are kept", warn=True)
    return _PLAIN_HEADS[model]


def _passes_on(model: PreTrainedModel, head: nn.Linear) -> bool:
    weight = head.weight
    said = torch.linspace(-99.0, 99.0, len(weight), device=weight.device)[None, None]
    token = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
    with probing(model), computing(head, lambda hidden: said):
        try:
            return torch.equal(call(model, input_ids=token, use_cache=False).logits, said)
        except (RuntimeError, ValueError, IndexError):  # its head is not called for one token alone
            return False


@contextmanager
def computing(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While inside, calling the head calls `forward`."""
    own = head.__dict__.get("forward")
    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own
