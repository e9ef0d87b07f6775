"""Models loaded straight into shards, so that no rank holds a whole one where that can be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.distributed import gathered
from rlsgd.models.loading import (
    keep_special_tokens,
    load_config,
    load_policy,
    load_reference,
    resolve_model,
)
from rlsgd.models.sharding import Sharding, fill, parameters_on_meta, shard


def load_sharded_policy(
    path: str, sharding: Sharding | None, *, random_weights: bool = False
) -> PreTrainedModel:
    """`load_policy` with every rank holding a shard; the same weights, bit for bit.

    Where `sharding` is none, here and below, it is loaded whole.

    Each rank reads the checkpoint on disk tensor by tensor and keeps its part. Where the weights
    are random, or transformers renames or rebuilds tensors on loading, the first rank has the whole
    model in host memory for a while and sends the others their parts.

    Raises:
        ValueError: there is no such model, or its weights are not all there.
    """
    if sharding is None:
        return load_policy(path, random_weights=random_weights)
    policy = _on_meta(path)
    _load(policy, policy, "", path, sharding, random_weights)
    return policy.train()


def load_sharded_reference(path: str, sharding: Sharding | None) -> PreTrainedModel:
    """The frozen initial policy in shards, in eval mode."""
    if sharding is None:
        return load_reference(path)
    reference = load_sharded_policy(path, sharding)
    reference.requires_grad_(False)
    return reference.eval()


def load_sharded_backbone(
    path: str, sharding: Sharding | None, *, random_weights: bool = False
) -> nn.Module:
    """The policy without its head, sharded like `load_sharded_policy`."""
    if sharding is None:
        return load_policy(path, random_weights=random_weights).base_model
    policy = _on_meta(path)
    backbone = policy.base_model
    _load(backbone, policy, f"{policy.base_model_prefix}.", path, sharding, random_weights)
    return backbone.train()


def _on_meta(path: str) -> PreTrainedModel:
    folder = resolve_model(path)
    try:
        config = load_config(folder)
        with parameters_on_meta():
            policy = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model.policy {path}: the model could not be loaded: {error}"
        ) from error
    try:
        shipped = GenerationConfig.from_pretrained(folder)
    except OSError:  # there is none: as from the config
        shipped = policy.generation_config
    keep_special_tokens(policy, shipped)
    return policy


def _load(
    module: nn.Module,
    policy: PreTrainedModel,
    prefix: str,
    path: str,
    sharding: Sharding,
    random_weights: bool,
) -> None:
    """Shard and fill `module`, a part of `policy` whose tensors have `prefix` in front there."""
    on_disk = None if random_weights else _readable_tensors(policy, resolve_model(path))
    read: Callable[[str], Tensor]
    if on_disk is not None:
        read, source_rank = (lambda name: on_disk[prefix + name]), None
    else:
        whole = _on_first_rank(path, random_weights)
        read, source_rank = (lambda name: whole[prefix + name]), 0
    shard(module, sharding, decoder_layers(module, policy))
    fill(module, sharding, read, source_rank=source_rank)


def _readable_tensors(policy: PreTrainedModel, folder: str) -> LazyTensors | None:
    """The tensors on disk if they are the model's own, by name, shape and meaning."""
    try:
        on_disk = LazyTensors.open(folder)
    except (FileNotFoundError, SafetensorError):  # the first rank says what is wrong
        return None
    transforms = get_model_conversion_mapping(policy, add_legacy=False)
    if any(isinstance(transform, WeightConverter) for transform in transforms):
        return None
    state = policy.state_dict()
    once = dict(policy.named_parameters())  # a tied tensor is on disk under its first name
    stored = dict(policy.named_buffers()).keys() & state.keys() | once.keys()
    matches = all(
        name in on_disk and on_disk.shape(name) == tuple(state[name].shape) for name in stored
    )
    return on_disk if matches else None


def _on_first_rank(path: str, random_weights: bool) -> dict[str, Tensor]:
    """The whole state dict on the first rank, nothing on the others; they fail together."""
    whole, errors = {}, []
    if dist.get_rank() == 0:
        try:
            whole = load_policy(path, random_weights=random_weights).state_dict()
        except ValueError as error:
            errors = [str(error)]
    if errors := gathered(errors):
        raise ValueError(errors[0])
    return whole


def decoder_layers(module: nn.Module, policy: PreTrainedModel) -> list[nn.Module]:
    """The modules that transformers says must stay in one piece: the decoder layers.

    Not those with the embedding, which BERT names as well: it may be tied to the head, and FSDP2
    takes a tied weight in one group alone.

    Raises:
        ValueError: the model's class names none.
    """
    names: Any = policy._no_split_modules or ()
    embedding = policy.get_input_embeddings()
    layers = [
        part
        for part in module.modules()
        if type(part).__name__ in names and embedding not in part.modules()
    ]
    if not layers:
        raise ValueError(
            f"--trainer.strategy: {type(policy).__name__} does not say which modules are its "
            "layers, so it cannot be sharded; use one device or DDP"
        )
    return layers
