"""Bytes of activations that one forward pass leaves for its backward, in eager PyTorch.

The layers are those of Llama, Mistral, Qwen2 and Qwen3 in transformers with scaled dot-product
attention. Letters: B rows, T tokens of a row, H width, I width between the MLP's matrices, A query
heads, G heads of keys and values, D width of a head, L layers, V vocabulary, K scored tokens of a
row. c, r are bytes of a number in a linear layer and on the residual stream (`Dtypes`).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlsgd.planner.architecture import Architecture

INT64, FP32 = 8, 4


@dataclass(frozen=True)
class Dtypes:
    """Bytes of a number in each place.

    Args:
        weight: parameters, gradients and optimizer states.
        compute: inputs and outputs of linear layers and attention.
        residual: the residual stream and the outputs of norms.
    """

    weight: int
    compute: int
    residual: int

    @property
    def autocasts(self) -> bool:
        """Whether every linear layer casts its input and its weight for itself."""
        return self.compute < self.residual


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees.

    Args:
        rows: B.
        tokens: T.
        scored: K, tokens of a row whose logits are computed.
        padded: some row is shorter than T, so that attention gets a mask.
    """

    rows: int
    tokens: int
    scored: int
    padded: bool


def norm_bytes(width: int, groups: int, dtypes: Dtypes, *, input_bytes: int) -> int:
    """One RMS norm of `groups` vectors of `width` for each token, bytes a token.

    The input in float32 for x^2 (4 width), its inverse root mean square (4), and the normalized
    vector, which the gradient of the norm's weight takes (`input_bytes` width).
    """
    return groups * (FP32 * width + FP32 + input_bytes * width)


def layer_bytes(model: Architecture, batch: Batch, dtypes: Dtypes) -> int:
    """Bytes that one decoder layer keeps: B T (norms + attention + MLP) + mask.

    - Two norms of width H, each 4H + 4 + rH (`norm_bytes`).
    - The input of the linear layers behind each: cH once; under autocast once for each of q, k, v
      and of gate, up, since every linear layer makes its own copy: 5cH instead of 2cH.
    - Norms on queries and keys: A + G vectors of width D for each token, as `norm_bytes`.
    - Attention: q and its output cAD each, k and v cGD each, and 4A for the log-sum-exp. With a
      mask, which the grouped kernel does not take, k and v are repeated for every head: cAD each.
    - The mask as numbers to be added, c B T^2, made anew in each layer.
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
    kv_heads = decoder.heads if batch.padded else model.kv_heads
    attention = c * model.head_dim * 2 * (decoder.heads + kv_heads) + FP32 * decoder.heads
    mlp = 4 * c * decoder.intermediate
    mask = c * batch.rows * batch.tokens**2 if batch.padded else 0
    return batch.rows * batch.tokens * (norms + inputs + attention + mlp) + mask


def ends_bytes(model: Architecture, batch: Batch, dtypes: Dtypes) -> int:
    """Bytes kept outside the layers, without logits.

    Token ids for the embedding's gradient (8 B T), cosine and sine of the positions (2 r B T D),
    the last norm (4H + 4 + rH a token), and the scored columns of its output as the head's input:
    c B K H, and the K columns' numbers (8 K).
    """
    tokens = batch.rows * batch.tokens
    norm = norm_bytes(model.hidden, 1, dtypes, input_bytes=dtypes.residual)
    angles = 2 * dtypes.residual * model.head_dim
    head_input = dtypes.compute * batch.rows * batch.scored * model.hidden
    return tokens * (INT64 + angles + norm) + head_input + INT64 * batch.scored


def activation_bytes(
    model: Architecture, batch: Batch, dtypes: Dtypes, *, checkpointing: bool = False
) -> int:
    """Bytes alive between forward and backward, without logits and casts of weights.

    L layers and the ends. With activation checkpointing (arXiv:1604.06174, one segment a layer)
    each layer leaves its input, r B T H, and all layers share one mask of booleans, B T^2; a layer
    at a time is then computed again, see `layer_bytes`.
    """
    ends = ends_bytes(model, batch, dtypes)
    if not checkpointing:
        return model.layers * layer_bytes(model, batch, dtypes) + ends
    inputs = model.layers * dtypes.residual * batch.rows * batch.tokens * model.hidden
    return inputs + ends + (batch.rows * batch.tokens**2 if batch.padded else 0)


def saved_logit_bytes(model: Architecture, batch: Batch) -> int:
    """What the token log-probabilities keep: logits in float32 (4 B K V), log-sum-exp, targets."""
    return batch.rows * batch.scored * (FP32 * model.vocabulary + FP32 + INT64)


def logit_peak_bytes(model: Architecture, batch: Batch, dtypes: Dtypes, temperature: float) -> int:
    """The most that logits take at once: while the entropy is measured, B K V (4 + 16 + raw).

    4 for the float32 logits that are kept; 16 for the entropy's log-probabilities, the same
    without infinities, probabilities and their product (`rlsgd.functional.logprobs`); and the
    model's own logits where they are another tensor: in bfloat16, or untempered.
    """
    raw = dtypes.compute if dtypes.compute < FP32 or temperature != 1.0 else 0
    return batch.rows * batch.scored * model.vocabulary * (FP32 + 16 + raw)


def cast_bytes(model: Architecture, dtypes: Dtypes) -> int:
    """Autocast's copies of linear layers' weights, c each, from forward to backward."""
    if not dtypes.autocasts:
        return 0
    return dtypes.compute * sum(weight.numel for weight in model.weights if weight.is_linear)
