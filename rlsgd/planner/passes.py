"""Bytes of one forward and backward pass at each of its moments, besides what is held anyway."""

from __future__ import annotations

from dataclasses import replace

from rlsgd.planner.activations import (
    activation_bytes,
    cast_bytes,
    checkpointed_forward_bytes,
    forward_logit_bytes,
    head_backward_bytes,
    last_norm_bytes,
    layer_workspace_bytes,
    recomputed_bytes,
    score_bytes,
)
from rlsgd.planner.architecture import Architecture
from rlsgd.planner.batches import Batch
from rlsgd.planner.optimizers import OptimizerSize
from rlsgd.planner.setup import Setup

Parts = dict[str, int]


def pass_moments(
    models: list[Architecture], optimizer: OptimizerSize, setup: Setup
) -> dict[str, Parts]:
    """Terms at the moments of a pass of the policy, and of the critic where there is one.

    - `forward` ends: gradients of the last step; activations (`rlsgd.planner.activations`) and what
      the head's input is selected from; the logits of a chunk. Where it is more, what stands in the
      last of checkpointed layers instead.
    - `backward` begins: gradients of earlier microbatches alone; activations; logits of a chunk and
      their gradient; the head's gradient, in float32 (`head_backward_bytes`).
    - `last layer` and `first layer` go back, see `_layers`.
    - `backward end`: all gradients. Those of a tied matrix are added in place, so that the
      embedding's exists beside the sum; where gradients accumulate, the largest exists beside its
      sum.

    Under FSDP2 whole gradients are in `communication` all the time, and the reduction of them too,
    which is at least as large as the head's gradient in float32. Activations, logits and layers are
    left out where `model.decoder` is none.
    """
    model, w = models[0], optimizer.item
    there = sum(optimizer.gradient_bytes(part, setup.shards) for part in models)
    left = 0 if optimizer.fused else there
    earlier = left if setup.accumulates else 0
    largest = w * max(weight.shard(setup.shards) for weight in model.weights)
    tied = (setup.dtypes.compute if setup.sharded else w) * model.tied_numel
    moments: dict[str, Parts] = {
        "forward": {"gradients": left},
        "backward": {"gradients": earlier},
        "backward end": {
            "gradients": there,
            "gradient workspace": tied + largest * bool(earlier),
        },
    }
    if model.decoder is None:
        moments["backward"]["gradient workspace"] = w * model.head_numel * (not setup.sharded)
    else:
        batch, dtypes, device = setup.batch, setup.dtypes, setup.accelerator
        kept = _activations(models, setup)
        at_head = {
            "activations": kept + batch.select_bytes(model, dtypes),
            "logits": forward_logit_bytes(model, batch, device),
        }
        gone = score_bytes(model, batch, dtypes) + last_norm_bytes(model, batch, dtypes)
        in_layer = kept - gone + checkpointed_forward_bytes(model, batch, dtypes)
        more = setup.activation_checkpointing and in_layer > sum(at_head.values())
        moments["forward"] |= {"activations": in_layer} if more else at_head
        logits, head = head_backward_bytes(model, batch, dtypes, device)
        moments["backward"] |= {
            "activations": kept,
            "logits": logits,
            "gradient workspace": head * (not setup.sharded),
        }
        moments |= _layers(models, optimizer, setup, earlier=earlier, left=left)
    passing = _passing(models, setup)
    return {name: passing | parts for name, parts in moments.items()}


def _layers(
    models: list[Architecture],
    optimizer: OptimizerSize,
    setup: Setup,
    *,
    earlier: int,
    left: int,
) -> dict[str, Parts]:
    """When a layer's MLP goes back: the policy's last layer, the first to do so, and its first.

    From one to the next, activations fall and gradients grow by the same amount each time, so that
    the most is at one of the two. Activations without the head's and the last norm's; of a
    checkpointed layer those computed again; temporaries (`layer_workspace_bytes`). Gradients of
    `earlier` microbatches; of this one the head's and that of the MLP's last matrix, and at the
    first layer those of all layers after it. Where gradients accumulate, or the optimizer frees
    them, only a tied head's waits, for that of the embedding.

    Args:
        models: policy and critic.
        optimizer: of both.
        setup: as it is planned.
        earlier: bytes of gradients when the backward pass begins.
        left: and when it has ended.
    """
    model, w, again = models[0], optimizer.item, setup.activation_checkpointing
    batch, dtypes, whole = setup.batch, setup.dtypes, not setup.sharded
    assert model.decoder is not None
    freed = optimizer.fused or setup.accumulates
    matrix = w * model.hidden * model.decoder.intermediate * whole
    beside = layer_workspace_bytes(model, batch, dtypes, matrix=matrix * freed)
    beside += recomputed_bytes(model, batch, dtypes) * again
    beside -= score_bytes(model, batch, dtypes) + last_norm_bytes(model, batch, dtypes)
    lowest = activation_bytes(replace(model, layers=1), batch, dtypes, checkpointing=again)
    moments = {
        "last layer": {"activations": _activations(models, setup) + beside},
        "first layer": {"activations": lowest + beside},
    }
    if freed:
        more = {"gradients": earlier, "gradient workspace": w * model.tied_numel * whole}
        return {name: parts | more for name, parts in moments.items()}
    missing = sum(
        w * weight.shard(setup.shards)
        for weight in model.weights
        if weight.layer == 0 or weight.roles == {"embedding"}
    )
    moments["last layer"]["gradients"] = w * model.head_numel * whole + matrix
    moments["first layer"]["gradients"] = left - missing + matrix
    return moments


def _activations(models: list[Architecture], setup: Setup) -> int:
    """Of policy and critic, which share a backward pass."""
    alone = Batch(setup.batch.rows, setup.tokens, scored=0, padded=setup.batch.rows > 1)
    return sum(
        activation_bytes(part, seen, setup.dtypes, checkpointing=setup.activation_checkpointing)
        for part, seen in zip(models, (setup.batch, alone), strict=False)
    )


def _passing(models: list[Architecture], setup: Setup) -> Parts:
    """Copies of weights and gradients during forward and backward passes.

    Autocast's bfloat16 copies of the linear layers' weights. Under FSDP2 instead: the root group
    (R: embedding, head, last norm) stays gathered, two layers (S each) are at a time, the next
    while one computes: c (R + 2 S). Gradients are whole until they are reduced, the root's until
    the end: c (R + S), and their float32 input to the reduction: 4 max(R, S).
    """
    dtypes = setup.dtypes
    if not setup.sharded:
        return {"bf16 copies": sum(cast_bytes(part, dtypes) for part in models)}
    total = 0
    for part in models:
        root = sum(weight.numel for weight in part.weights if weight.layer is None)
        layer = sum(weight.numel for weight in part.weights if weight.layer == 0)
        total += dtypes.compute * (2 * root + 3 * layer) + 4 * max(root, layer)
    return {"communication": total}
