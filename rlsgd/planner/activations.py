"""Bytes of activations that one forward pass leaves for its backward, in eager PyTorch.

The layers are those of Llama, Mistral, Qwen2 and Qwen3 in transformers with scaled dot-product
attention. Letters: B rows, T tokens of a row that the model sees, N tokens that go through the
layers (B T where rows stand alone), H width, I width between the MLP's matrices, A query heads, G
heads of keys and values, D width of a head, L layers, V vocabulary, K scored tokens of a row, S of
all rows. c, r are bytes of a number in a linear layer and on the residual stream (`Dtypes`).
"""

from __future__ import annotations

from rlsgd.functional.head_logprobs import tokens_at_a_time
from rlsgd.planner.architecture import Architecture
from rlsgd.planner.batches import FP32, INT64, Batch, Dtypes

GENERATOR_STATE = 5056  # of torch's generator on the CPU


def norm_bytes(width: int, groups: int, dtypes: Dtypes, *, input_bytes: int) -> int:
    """One RMS norm of `groups` vectors of `width` for each token, bytes a token.

    The input in float32 for x^2 (4 width), its inverse root mean square (4), and the normalized
    vector, which the gradient of the norm's weight takes (`input_bytes` width).
    """
    return groups * (FP32 * width + FP32 + input_bytes * width)


def layer_bytes(model: Architecture, batch: Batch, dtypes: Dtypes) -> int:
    """Bytes that one decoder layer keeps: N (norms + inputs + MLP) + attention + mask.

    - Two norms of width H, each 4H + 4 + rH (`norm_bytes`).
    - The input of the linear layers behind each: cH once; under autocast once for each of q, k, v
      and of gate, up, since every linear layer makes its own copy: 5cH instead of 2cH.
    - Norms on queries and keys: A + G vectors of width D for each token, as `norm_bytes`.
    - Attention: see the batch's `attention_bytes`.
    - The mask as numbers to be added, c each, made anew in each layer.
    - MLP: gate, silu(gate), up and their product, 4cI. The input of o_proj is attention's output.
    """
    decoder = model.decoder
    assert decoder is not None
    c = dtypes.compute
    norms = 2 * norm_bytes(model.hidden, 1, dtypes, input_bytes=dtypes.residual)
    inputs = (5 if dtypes.autocasts else 2) * c * model.hidden
    if decoder.query_key_norms:
        groups = decoder.heads + model.kv_heads
        norms += norm_bytes(model.head_dim, groups, dtypes, input_bytes=c)
    mlp = 4 * c * decoder.intermediate
    attention = batch.attention_bytes(model, dtypes) + c * batch.mask_numel
    return batch.computed * (norms + inputs + mlp) + attention


def recomputed_bytes(model: Architecture, batch: Batch, dtypes: Dtypes) -> int:
    """What a checkpointed layer keeps once it is computed again, beside its input.

    As `layer_bytes`, less the float32 input of its first norm where that is the layer's own input.
    """
    own = dtypes.residual * batch.computed * model.hidden * (dtypes.residual == FP32)
    return layer_bytes(model, batch, dtypes) - own


def layer_workspace_bytes(
    model: Architecture, batch: Batch, dtypes: Dtypes, *, matrix: int = 0
) -> int:
    """Temporaries of a layer's backward where they are most: r H N + c I N + max(c I N, matrix).

    In the MLP: gradients of the residual stream and of the product; then those of the product's two
    factors, when of the product itself nothing is left, or, just before, of the last matrix.

    Args:
        model: its widths.
        batch: its tokens.
        dtypes: bytes of a number.
        matrix: bytes of the gradient of the MLP's last matrix where it is freed at once.
    """
    assert model.decoder is not None
    factor = batch.computed * dtypes.compute * model.decoder.intermediate
    return batch.computed * dtypes.residual * model.hidden + factor + max(factor, matrix)


def checkpointed_forward_bytes(model: Architecture, batch: Batch, dtypes: Dtypes) -> int:
    """What stands in the MLP of a layer that leaves its input alone: (2 r H + 3 c I) N.

    The residual stream, what the norm made of it, both factors of the product and the product.
    """
    assert model.decoder is not None
    width = 2 * dtypes.residual * model.hidden + 3 * dtypes.compute * model.decoder.intermediate
    return batch.computed * width


def last_norm_bytes(model: Architecture, batch: Batch, dtypes: Dtypes) -> int:
    """4H + 4 + rH a token, see `norm_bytes`."""
    return batch.computed * norm_bytes(model.hidden, 1, dtypes, input_bytes=dtypes.residual)


def score_bytes(model: Architecture, batch: Batch, dtypes: Dtypes) -> int:
    """What `rlsgd.models.scoring.completion_logprobs` keeps besides logits, with the entropy.

    The head's input, c S H; targets 8 S; log-probability and normalizer, which are one tensor, 8 S;
    entropy 4 S; ids and indices, see the batch's `index_bytes`. Nothing for a critic.
    """
    if not batch.scored:
        return 0
    kept = dtypes.compute * model.hidden + INT64 + 2 * FP32 + FP32
    return batch.scores * kept + batch.index_bytes()


def activation_bytes(
    model: Architecture, batch: Batch, dtypes: Dtypes, *, checkpointing: bool = False
) -> int:
    """Bytes alive between forward and backward, without logits and casts of weights.

    L layers, cosine and sine of the positions (2 r N D), the last norm and the scores. With
    activation checkpointing (arXiv:1604.06174, one segment a layer) each layer leaves its input,
    r N H, and the state of the random generator, and all layers share one mask of booleans; a layer
    at a time is then computed again, see `recomputed_bytes`.
    """
    ends = 2 * dtypes.residual * batch.computed * model.head_dim
    ends += last_norm_bytes(model, batch, dtypes) + score_bytes(model, batch, dtypes)
    if not checkpointing:
        return model.layers * layer_bytes(model, batch, dtypes) + ends
    inputs = model.layers * (dtypes.residual * batch.computed * model.hidden + GENERATOR_STATE)
    return inputs + ends + batch.mask_numel


# ---- logits, of a chunk of tokens at a time (`rlsgd.functional.head_logprobs`)


def chunk_tokens(model: Architecture, batch: Batch, device: str) -> int:
    """n, tokens of a chunk."""
    return min(batch.scores, tokens_at_a_time(model.vocabulary, device))


def saved_logit_bytes(model: Architecture, batch: Batch, device: str) -> int:
    """Logits that are kept in float32, 4 S V where one chunk holds all tokens, else none."""
    kept = batch.scores <= chunk_tokens(model, batch, device)
    return FP32 * batch.scores * model.vocabulary * kept


def forward_logit_bytes(model: Architecture, batch: Batch, device: str) -> int:
    """The most that logits take in the forward: those of a chunk and as many shifted, 8 n V.

    Both in float32, for the sum of exponentials and again for the entropy. Casting and tempering
    before that take no more: 4 + 2 and 4 + 4.
    """
    return 2 * FP32 * chunk_tokens(model, batch, device) * model.vocabulary


def head_backward_bytes(
    model: Architecture, batch: Batch, dtypes: Dtypes, device: str
) -> tuple[int, int]:
    """Logits and, beside them, gradients of the head's weight and input, at their most.

    Logits and their gradient in float32, 8 n V; in bfloat16, where the logits were kept, the
    gradient's cast beside both, 10 n V. Meanwhile the gradient of the weight in float32, 4 V H, and
    that of the input, c S H, which where the logits were kept is copied from a product of its size.
    In bfloat16 then the product that is added to the weight's, c V H, when of the chunk nothing is
    left but the gradient's cast, and the kept logits.
    """
    c = dtypes.compute
    numel = chunk_tokens(model, batch, device) * model.vocabulary
    kept = saved_logit_bytes(model, batch, device)
    gradients = FP32 * model.head_numel + (1 + bool(kept)) * c * batch.scores * model.hidden
    if c == FP32:
        return 2 * FP32 * numel, gradients
    casting = max(2 * FP32 * numel, kept + (FP32 + c) * numel), gradients
    adding = kept + c * numel, gradients + c * model.head_numel
    return max(casting, adding, key=sum)


def cast_bytes(model: Architecture, dtypes: Dtypes) -> int:
    """Autocast's copies of linear layers' weights, c each, from forward to backward."""
    if not dtypes.autocasts:
        return 0
    return dtypes.compute * sum(weight.numel for weight in model.weights if weight.is_linear)
