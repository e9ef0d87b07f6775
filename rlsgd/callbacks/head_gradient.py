"""HeadGradient: the gradient of each token class in the language model head, also a tied one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlsgd.core.distributed import global_sum, whole
from rlsgd.core.types import Microbatch, TokenBatch
from rlsgd.models.probing import is_probed


class HeadGradient:
    """Norm of each row of the head's gradient, and how often its token was trained.

    Where the head is tied to the embedding, backward leaves the sum of both gradients in one
    tensor. The embedding's part is what arrives at its output, added up by token id: a hook on the
    embedding collects it, and it is taken off the sum. That costs a matrix of the embedding's size
    in memory while it is collected, and no second backward.
    """

    def __init__(self, model: nn.Module) -> None:
        find: Any = getattr(model, "get_output_embeddings", lambda: None)
        head = find()
        self.head: Tensor | None = None if head is None else head.weight
        self.embedding: Any = None if head is None else model.get_input_embeddings()  # pyright: ignore
        self.tied = head is not None and self.embedding.weight is head.weight
        self.hook: RemovableHandle | None = None
        self.embedded: Tensor | None = None  # [V, H] the embedding's part
        self.frequency: Tensor | None = None  # [V]

    def watch(self) -> None:
        """Collect from now on, until `stop`."""
        if self.tied and self.hook is None:
            self.hook = self.embedding.register_forward_hook(self._on_forward)

    def count(self, batch: Any) -> None:
        """Count the tokens that this batch trains."""
        if self.head is None or not isinstance(batch, TokenBatch):
            return
        for part in batch.with_left_out() if isinstance(batch, Microbatch) else [batch]:
            trained = part.input_ids[part.completion_mask]
            counts = torch.bincount(trained, minlength=len(self.head))
            self.frequency = counts if self.frequency is None else self.frequency + counts

    def row_norms(self) -> tuple[Tensor, Tensor] | None:
        """Trained occurrences [V] and gradient norms [V] of all tokens; every rank must call.

        None if the head has no gradient, or no batch was counted.
        """
        if self.head is None or self.head.grad is None or self.frequency is None:
            return None
        gradient = whole(self.head.grad).float()
        if self.embedded is not None:
            ranks = float(global_sum(torch.ones((), device=gradient.device)))
            gradient = gradient - global_sum(self.embedded) / ranks  # the strategy averages
        norms = torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float64)
        return global_sum(self.frequency).cpu(), norms.cpu()

    def forget(self) -> None:
        """Begin anew, for the next optimizer step."""
        self.embedded = self.frequency = None

    def stop(self) -> None:
        """Collect no longer."""
        self.forget()
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def _on_forward(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad and not is_probed(module):
            ids = inputs[0].detach()
            output.register_hook(lambda gradient: self._add(ids, gradient))

    @torch.no_grad()
    def _add(self, ids: Tensor, gradient: Tensor) -> None:
        rows = gradient.reshape(-1, gradient.shape[-1]).float()
        if (scale := getattr(self.embedding, "embed_scale", None)) is not None:
            rows = rows * scale  # Gemma's embeddings are multiplied after the look-up
        if (padding := self.embedding.padding_idx) is not None:  # gets no gradient
            rows = rows * (ids.reshape(-1, 1) != padding)
        if self.embedded is None:
            shape = self.embedding.num_embeddings, rows.shape[1]
            self.embedded = torch.zeros(shape, device=rows.device)
        self.embedded.index_add_(0, ids.reshape(-1), rows)
