"""Policy, reference and tokenizer: any causal language model that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlsgd.core.named_files import INDEXES, read_weight_map
from rlsgd.core.stored import find_file
from rlsgd.models.names import (  # noqa: F401  (callers take them from here)
    EMBEDDED,
    PREPARED_BY,
    cache_folder,
    resolve_model,
)


def _check_hub_indexes(model: str) -> None:
    """As `check_model_folder` does, of a model of the hub, whose files may be in its cache alone.

    Raises:
        ValueError: an index names files elsewhere.
    """
    for index in filter(None, (find_file(model, name) for name in INDEXES)):
        read_weight_map(index)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; a missing pad token becomes the end-of-sequence token.

    Raises:
        ValueError: there is none, or it has no end-of-sequence token.
    """
    folder = resolve_model(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model.policy {path}: no tokenizer could be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"--model.policy {path}: its tokenizer has no eos token; add one to it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_policy(path: str, *, random_weights: bool = False) -> PreTrainedModel:
    """The model to train: float32 weights, train mode, every dropout and jitter 0.

    Dropout must be off: it makes the policy that is updated differ from the one that sampled, so
    that the ratio of the first minibatch is not 1. The noise on the router of a mixture of experts
    does the same.

    Args:
        path: see `resolve_model`.
        random_weights: initialise from the folder's `config.json` alone, under the global seed.

    Raises:
        ValueError: there is no such model, or its weights are not all there.
    """
    folder = resolve_model(path)
    try:
        config = load_config(folder)
        if random_weights:
            policy, missing = AutoModelForCausalLM.from_config(config, dtype=torch.float32), []
        else:
            if not Path(folder).is_dir():
                _check_hub_indexes(folder)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True
            )
            policy, missing = loaded[0], sorted(loaded[1]["missing_keys"])
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"--model.policy {path}: the model could not be loaded: {error}"
        ) from error
    if missing:
        raise ValueError(
            f"--model.policy {path}: its checkpoint lacks {', '.join(missing[:3])} ({len(missing)} "
            "tensors in all), which would be random; is it that of a causal language model?"
        )
    keep_special_tokens(policy, policy.generation_config)
    return policy.train()


def load_reference(path: str) -> PreTrainedModel:
    """The frozen initial policy, in eval mode."""
    reference = load_policy(path)
    reference.requires_grad_(False)
    return reference.eval()


def load_config(folder: str) -> PretrainedConfig:
    """A model's config with every dropout and jitter 0."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    without_noise(config)
    return config


def keep_special_tokens(policy: PreTrainedModel, shipped: GenerationConfig | None) -> None:
    """Give a model the special tokens of a generation config and nothing else of it.

    Its other settings (top-k 20, repetition penalty ...) would make the sampler's distribution
    differ from the policy's.
    """
    shipped = shipped or GenerationConfig()
    policy.generation_config = GenerationConfig(
        bos_token_id=shipped.bos_token_id,
        eos_token_id=shipped.eos_token_id,
        pad_token_id=shipped.pad_token_id,
    )


def without_noise(config: PretrainedConfig) -> None:
    """Set every dropout and jitter of a config to 0."""
    if hasattr(config, "rescale_every"):  # RWKV's, for float16: in eval mode it changes weights
        config.rescale_every = 0
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            without_noise(value)
        elif ("drop" in name or "jitter" in name) and isinstance(value, float):
            setattr(config, name, 0.0)


def stop_token_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's eos and the model's own list."""
    own: Any = policy.generation_config.eos_token_id if policy.generation_config else None
    listed = own if isinstance(own, list) else [own]
    ids: list[Any] = [tokenizer.eos_token_id, *listed]
    return sorted({token_id for token_id in ids if token_id is not None})


def check_vocabulary(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for.

    Raises:
        ValueError: names both sizes.
    """
    embedded: Any = policy.get_input_embeddings().num_embeddings
    tokens = len(tokenizer)  # pyright: ignore[reportArgumentType]
    if tokens > embedded:
        raise ValueError(
            f"--model.policy: its tokenizer has {tokens} tokens and the model embeds {embedded}; "
            "they do not belong together"
        )


def check_positions(policy: PreTrainedModel, prompt_tokens: int, completion_tokens: int) -> None:
    """Refuse sequences that are longer than the model was made for.

    Raises:
        ValueError: names the flag and the numbers.
    """
    limit = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and prompt_tokens + completion_tokens > limit:
        raise ValueError(
            f"--model.max_completion_tokens {completion_tokens}: with a prompt of {prompt_tokens} "
            f"tokens that is more than the model's {limit} positions"
        )
