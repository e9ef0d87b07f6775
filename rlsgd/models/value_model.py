"""ValueModel: the critic, a transformer backbone with a scalar head.

Its first values are 0 whatever the backbone does, so the paths below compare hidden states, seen in
one direction that is drawn once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsgd.core.types import TokenBatch
from rlsgd.models.calling import accepted, call
from rlsgd.models.comparing import Plain
from rlsgd.models.fast_paths import choose, fast_path, require
from rlsgd.models.recomputing import recomputes
from rlsgd.models.scoring import aligned
from rlsgd.models.sharded_loading import load_sharded_backbone
from rlsgd.models.sharding import Sharding, compute_device, is_sharded, shard

PADDED_STATES = "the critic on rows padded on the left"
ALIGNED_STATES = "the critic on rows padded on the right"
RECOMPUTED_STATES = "recomputing the critic's activations"
STATES_LAYOUTS = {
    PADDED_STATES: "",
    ALIGNED_STATES: "its rows are moved to the left for the critic",
}


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
        source = self.source(policy)
        rows = batch
        if prove_states(source, batch.input_ids.shape[1]) == ALIGNED_STATES:
            rows = aligned(batch)
        # Only these positions meet the head: nothing at padding can reach a value or a gradient.
        before, last = _states(source, rows)
        mask = batch.completion_mask
        values = self.value_of(before)
        return torch.zeros_like(mask, dtype=values.dtype).masked_scatter(mask, values), (
            self.value_of(last)
        )

    def source(self, policy: PreTrainedModel) -> PreTrainedModel:
        """The model whose hidden states are read: the own backbone, or else the policy."""
        return cast(PreTrainedModel, self.backbone) if self.backbone is not None else policy

    def value_of(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [...] in float32 under autocast too: bfloat16 would round the error away."""
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = self.head.weight.float(), self.head.bias.float()
            return nn.functional.linear(hidden.float(), weight, bias).squeeze(-1)


def prove_values(critic: ValueModel, policy: PreTrainedModel, longest: int) -> None:
    """Try the critic out for rows of every length up to the longest, in tokens.

    Raises:
        ValueError: see `prove_states`.
    """
    if is_sharded(critic):  # FSDP2 has to see a pass of the whole before one of a part
        ids = torch.zeros(1, 2, dtype=torch.long, device=compute_device(critic))
        row = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([[False, True]]))
        with torch.no_grad():
            critic(policy, row.to(ids.device))
    for length in (0, longest):
        prove_states(critic.source(policy), length)


def prove_states(source: PreTrainedModel, length: int) -> str:
    """`PADDED_STATES` or `ALIGNED_STATES`, whichever the model computes right for such rows.

    Args:
        source: see `ValueModel.source`.
        length: of the longest row, in tokens.

    Raises:
        ValueError: a row's values depend on padding, on other rows, or on activations being
            recomputed.
    """
    if recomputes(source):
        flag = "--model.activation_checkpointing true"
        require(source, RECOMPUTED_STATES, flag=flag, fix="set it to false", length=length)
    fix = "use an algorithm without a critic, such as GRPO"
    return choose(source, STATES_LAYOUTS, flag="--model.policy", fix=fix, length=length)


def _states(source: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Hidden states [S, H] before the completion tokens, and [B, H] at the end of each row."""
    mask, real = batch.completion_mask, batch.attention_mask.long()
    positions = (real.cumsum(1) - 1).clamp(min=0)
    hidden = _last_hidden(
        source, input_ids=batch.input_ids, attention_mask=real, position_ids=positions
    )
    rows = torch.arange(len(mask), device=mask.device)
    ends = mask.shape[1] - 1 - real.flip(1).argmax(1)
    return hidden[:, :-1][mask[:, 1:]], hidden[rows, ends]


def _last_hidden(source: PreTrainedModel, **inputs: Any) -> Tensor:
    """[B, T, H] of a backbone, or of a model with a head."""
    inputs["use_cache"] = False
    if source.get_output_embeddings() is None:
        return call(source, **inputs).last_hidden_state
    named = accepted(source, **inputs, logits_to_keep=1)
    # by keyword whether or not the class names it: most take it from their decorator
    return source(**named, output_hidden_states=True).hidden_states[-1]


# ---- the paths, each by itself


def _in_one_direction(states: tuple[Tensor, Tensor]) -> Tensor:
    """[S, H] and [B, H] -> [S + B], as a head would see them."""
    hidden = torch.cat(states).float()
    draw = torch.Generator().manual_seed(11)
    return hidden @ torch.randn(hidden.shape[1], generator=draw).to(hidden.device)


def _plain_states(source: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Each row alone: its token ids and no more."""
    before, last = [], []
    for ids, real, counted in zip(
        batch.input_ids, batch.attention_mask, batch.completion_mask, strict=True
    ):
        hidden = _last_hidden(source, input_ids=ids[real][None])[0]
        before.append(hidden[:-1][counted[real][1:]])
        last.append(hidden[-1:])
    return _in_one_direction((torch.cat(before), torch.cat(last)))


_PLAIN = Plain(_plain_states, unit="of the largest value", is_relative=True)


@fast_path(PADDED_STATES, plain=_PLAIN)
def _padded(source: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return _in_one_direction(_states(source, batch))


@fast_path(ALIGNED_STATES, plain=_PLAIN)
def _aligned(source: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return _in_one_direction(_states(source, aligned(batch)))


@fast_path(RECOMPUTED_STATES, plain=_PLAIN)
def _recomputed(source: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return _in_one_direction(_states(source, aligned(batch)))


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
