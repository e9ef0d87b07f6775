"""Roles: what a parameter is, for optimizers that treat some apart; they see tensors, not names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

Role = Literal["embedding", "head"]


def mark_roles(model: nn.Module) -> None:
    """Mark the embedding tables of a model, and its language model head, on the tensors.

    A matrix that is both, because they are tied, gets both roles. Wrapping or sharding a model may
    replace its parameters, so call this when it is done, right before making the optimizer.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            _add_role(module.weight, "embedding")
    find_head = getattr(model, "get_output_embeddings", None)  # of transformers' models
    if find_head is not None and (head := find_head()) is not None:
        _add_role(head.weight, "head")


def mark_named_head(groups: Iterable[dict[str, Any]]) -> None:
    """Mark the head by its name `lm_head`, in an optimizer's groups that were made of named ones.

    Tied embeddings have the embedding's name alone: `mark_roles` of the model finds those too.
    """
    for group in groups:
        for name, parameter in zip(group.get("param_names", ()), group["params"], strict=False):
            if name.split(".")[-2:] == ["lm_head", "weight"]:
                _add_role(parameter, "head")


def roles(parameter: Tensor) -> frozenset[Role]:
    """The roles that `mark_roles` gave; none for norms, biases and the matrices of the layers."""
    return getattr(parameter, "rlsgd_roles", frozenset())


def _add_role(parameter: Tensor, role: Role) -> None:
    setattr(parameter, "rlsgd_roles", roles(parameter) | {role})  # noqa: B010
