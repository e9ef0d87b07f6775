"""ValueModel: the critic, a transformer backbone with a scalar head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsgd.core.types import TokenBatch
from rlsgd.models.sharded_loading import load_sharded_backbone
from rlsgd.models.sharding import Sharding, shard


class ValueModel(nn.Module):
    """Value of the state in which each completion token was sampled.

    The head starts at zero: every first value is exactly 0 whatever the seed, so the first
    advantages are the returns themselves and not the noise of a random head, and the first gradient
    moves the head alone.

    Args:
        backbone: a causal decoder with its own weights, or None to read the hidden states of the
            policy that `forward` is given.
        hidden_size: width of the hidden states.
    """

    def __init__(self, backbone: nn.Module | None, hidden_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, policy: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Values of the completion tokens' states, and of the states that the completions end in.

        Args:
            policy: its backbone is run where this model has none of its own.
            batch: its masks and token ids are read.

        Returns:
            values [B, T]: column t is read from the hidden state of token t - 1, so it does not
            know token t; 0 outside the completion mask. And last_values [B], read from the last
            token.
        """
        mask, attention_mask = batch.completion_mask, batch.attention_mask
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": attention_mask.long(),
            "position_ids": (attention_mask.long().cumsum(1) - 1).clamp(min=0),
            "use_cache": False,
        }
        if self.backbone is not None:
            hidden = self.backbone(**inputs).last_hidden_state  # [B, T, H]
        else:
            output: Any = policy(**inputs, output_hidden_states=True, logits_to_keep=1)
            hidden = output.hidden_states[-1]
        # Only these positions meet the head: nothing at padding can reach a value or a gradient.
        before = hidden[:, :-1][mask[:, 1:]]
        rows = torch.arange(len(mask), device=mask.device)
        last = hidden[rows, mask.shape[1] - 1 - attention_mask.flip(1).long().argmax(1)]
        values = self.value_of(before)
        return torch.zeros_like(mask, dtype=values.dtype).masked_scatter(mask, values), (
            self.value_of(last)
        )

    def value_of(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [...] in float32 under autocast too: bfloat16 would round the error away."""
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = self.head.weight.float(), self.head.bias.float()
            return nn.functional.linear(hidden.float(), weight, bias).squeeze(-1)


def load_value_model(
    path: str,
    *,
    shared_backbone: bool,
    hidden_size: int,
    random_weights: bool = False,
    sharding: Sharding | None = None,
) -> ValueModel:
    """A critic that starts from the policy's weights, in float32 and without dropout.

    Args:
        path: see `rlsgd.models.loading.resolve_model`.
        shared_backbone: read the policy's hidden states instead of loading a second backbone.
        hidden_size: width of the policy's hidden states.
        random_weights: initialise the backbone at random instead.
        sharding: of backbone and head, over all ranks; none keeps the whole model here.
    """
    backbone = None
    if not shared_backbone:
        backbone = load_sharded_backbone(path, sharding, random_weights=random_weights)
    model = ValueModel(backbone, hidden_size)
    if sharding is not None:
        model.head.to("cpu" if sharding.cpu_offload else sharding.device)
        # the head alone is left for this group, and it computes in its own dtype; see `value_of`
        shard(model, replace(sharding, compute_dtype=None), [])
    return model
