"""Architecture: the shapes of a model that memory depends on, from its config alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

from rlsgd.optimizers.roles import Role

PUBLISHED = Path(__file__).parents[1] / "assets" / "configs" / "published.json"
KNOWN_LAYERS = ("llama", "mistral", "qwen2", "qwen3")  # model types, see `activations`


@dataclass(frozen=True)
class Weight:
    """One parameter; a tied one is listed once, with both roles.

    Args:
        shape: as it is whole.
        layer: number of the decoder layer it is in; none for embeddings, head and last norm.
        roles: `embedding`, `head`, both or neither (`rlsgd.optimizers.roles`).
        is_linear: a linear layer multiplies by it, so that autocast makes a copy of it.
    """

    shape: tuple[int, ...]
    layer: int | None = None
    roles: frozenset[Role] = frozenset()
    is_linear: bool = False

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def is_layer_matrix(self) -> bool:
        """Whether `rlsgd.optimizers.MuonWithAdamW` gives it to Muon."""
        return len(self.shape) == 2 and min(self.shape) > 1 and not self.roles

    def shard(self, num_shards: int) -> int:
        """Entries that the first of `num_shards` ranks holds: FSDP2 splits the first axis."""
        if not self.shape:
            return 1
        return -(-self.shape[0] // num_shards) * prod(self.shape[1:])


@dataclass(frozen=True)
class Decoder:
    """Widths of layers as Llama, Mistral, Qwen2 and Qwen3 have them.

    Args:
        intermediate: width of the gated multilayer perceptron.
        heads: query heads.
        query_key_norms: each head's queries and keys are normalized (Qwen3).
    """

    intermediate: int
    heads: int
    query_key_norms: bool


@dataclass(frozen=True)
class Architecture:
    """A causal language model, or the critic made of one.

    Args:
        name: as the user wrote it.
        weights: every parameter once.
        layers: decoder layers.
        hidden: width of the residual stream.
        vocabulary: rows of the head.
        kv_heads: heads of keys and values.
        head_dim: width of a head.
        decoder: none where the layers are not of the families whose activations are known.
    """

    name: str
    weights: tuple[Weight, ...]
    layers: int
    hidden: int
    vocabulary: int
    kv_heads: int
    head_dim: int
    decoder: Decoder | None

    @cached_property
    def num_weights(self) -> int:
        return sum(weight.numel for weight in self.weights)

    @cached_property
    def head_numel(self) -> int:
        return sum(weight.numel for weight in self.weights if "head" in weight.roles)

    @cached_property
    def tied_numel(self) -> int:
        """Entries of the matrix that is embedding and head, 0 where they are two."""
        return sum(weight.numel for weight in self.weights if len(weight.roles) == 2)

    def held(self, num_shards: int) -> int:
        """Weights on the rank that holds most."""
        return sum(weight.shard(num_shards) for weight in self.weights)

    def critic(self) -> Architecture:
        """A `ValueModel` on a backbone of its own: no vocabulary, a scalar head."""
        kept = [weight for weight in self.weights if weight.roles != {"head"}]
        backbone = (
            replace(w, roles=w.roles - {"head"}, is_linear=w.is_linear and not w.roles)
            for w in kept
        )
        weights = (*backbone, Weight((1, self.hidden)), Weight((1,)))
        return replace(self, name=f"{self.name} critic", weights=weights, vocabulary=0)


def load_architecture(name: str) -> Architecture:
    """Read a config and build the model on the meta device: shapes alone, no weights.

    Args:
        name: one of `published.json`, or what `resolve_model` takes: `embedded`, a
            folder with config.json, the name of a prepared model or a hub name.

    Raises:
        ValueError: there is no such config, or transformers cannot build a model from it.
    """
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlsgd.core.layer_kinds import layer_of
    from rlsgd.models.loading import load_config, resolve_model
    from rlsgd.optimizers.roles import mark_roles, roles

    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    try:
        if name in published:
            config = AutoConfig.for_model(**published[name])
        else:
            config = load_config(resolve_model(name, "--model"))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        if str(error).startswith("--model"):
            raise ValueError(f"{error}. Known without a folder: {', '.join(published)}") from error
        raise ValueError(
            f"--model {name}: no model can be built from its config: {error}. Known without a "
            f"folder: {', '.join(published)}"
        ) from error
    mark_roles(model)
    linear = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear)}
    weights = tuple(
        Weight(tuple(p.shape), layer_of(path), roles(p), id(p) in linear)
        for path, p in model.named_parameters(remove_duplicate=True)
    )
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if heads is None:
        raise ValueError(
            f"--model {name}: {type(model).__name__} has no attention heads, and activations and "
            f"cache are planned for attention alone. Known: {', '.join(published)}"
        )
    decoder = None
    if text.model_type in KNOWN_LAYERS:
        decoder = Decoder(text.intermediate_size, heads, text.model_type == "qwen3")
    return Architecture(
        name=name,
        weights=weights,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        decoder=decoder,
    )
