"""Bytes of sampling: by the policy itself, or by an engine with weights and a cache of its own."""

from __future__ import annotations

from rlsgd.planner.architecture import Architecture
from rlsgd.planner.setup import Setup


def kv_cache_bytes(model: Architecture, rows: int, tokens: int, item: int) -> int:
    """Keys and values: 2 L G D c for each token of each row, all at full length."""
    return 2 * model.layers * model.kv_heads * model.head_dim * item * rows * tokens


def engine_bytes(model: Architecture, setup: Setup) -> dict[str, int]:
    """An engine on one GPU, which holds all completions of one training GPU at once."""
    item = setup.sampler_item
    cache = kv_cache_bytes(model, setup.rows, setup.tokens, item)
    return {"sampler weights": item * model.num_weights, "KV cache": cache}


def own_sampling_bytes(model: Architecture, setup: Setup) -> dict[str, dict[str, int]]:
    """HFSampler on the policy itself, at two moments of a rollout.

    `sampler weights`: shards gathered for the time of the rollout, c x all weights.

    - `prefill`: a KV cache of the prompts, each read once for its group. For each prompt token what
      stands beside a layer's MLP: embedding, layer's input, residual and normalized vector, gate,
      up and their product, cosine and sine, and the row of the mask: c (4 H + 3 I + 2 D) + T; left
      out where `model.decoder` is none.
    - `decoding` ends: the whole KV cache. Logits, their tempered copy, the probabilities and what
      they are drawn with, 4 x 4 V a row.
    """
    c = setup.dtypes.compute
    rows = min(setup.rows, setup.sampler_batch_size or setup.rows)
    weights = {"sampler weights": c * model.num_weights * setup.sharded}
    prompts = -(-rows // setup.group_size)
    prompt, beside = setup.max_prompt_tokens, 0
    if model.decoder is not None:
        width = 4 * model.hidden + 3 * model.decoder.intermediate + 2 * model.head_dim
        beside = prompts * prompt * (c * width + prompt)
    workspaces = {
        "prefill": (prompts, prompt, beside),
        "decoding": (rows, setup.tokens, 4 * 4 * rows * model.vocabulary),
    }
    return {
        moment: weights
        | {"KV cache": kv_cache_bytes(model, held, tokens, c), "sampler workspace": workspace}
        for moment, (held, tokens, workspace) in workspaces.items()
    }
