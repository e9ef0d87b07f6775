"""Builds tiny random models in Hugging Face format with a tokenizer of single characters."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

CHARACTERS = "0123456789+-=? abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTU"
PAD, EOS = 0, 1
# 64 tokens: more than the 50 to which transformers' top_k confines sampling by default
VOCABULARY = {token: i for i, token in enumerate(["<pad>", "<eos>", *CHARACTERS])}
SHARED = {
    "vocab_size": len(VOCABULARY),
    "initializer_range": 0.3,  # logits far from flat, so that a wrong column shows
    "bos_token_id": None,
    "eos_token_id": EOS,
}
LLAMA = {
    **SHARED,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.1,
}


def character_tokenizer(pad_token: str | None = "<pad>") -> PreTrainedTokenizerFast:
    """One token for each character."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad_token,
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def save_tiny(folder: Path, config: PreTrainedConfig) -> Path:
    """Save a random float32 model; its norms and biases are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder
