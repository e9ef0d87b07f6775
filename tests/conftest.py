"""Tiny random models in Hugging Face format, made once for each session."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from tests.helpers.tiny_models import EOS, LLAMA, PAD, SHARED, character_tokenizer, save_tiny


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rotary positions, grouped queries, tied embeddings, and an attention dropout of 0.1."""
    config = LlamaConfig(**LLAMA, pad_token_id=PAD, tie_word_embeddings=True)
    return save_tiny(tmp_path_factory.mktemp("tiny") / "llama", config)


@pytest.fixture(scope="session")
def tiny_llama_untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(**LLAMA, pad_token_id=PAD, tie_word_embeddings=False)
    return save_tiny(tmp_path_factory.mktemp("tiny") / "llama_untied", config)


@pytest.fixture(scope="session")
def tiny_llama_pad_is_eos(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """The weights of `tiny_llama`, whose padding token is the end-of-sequence token."""
    folder = tmp_path_factory.mktemp("tiny") / "llama_pad_is_eos"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.config.pad_token_id = model.generation_config.pad_token_id = EOS
    model.save_pretrained(folder)
    character_tokenizer("<eos>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Norms on queries and keys, and heads wider than hidden_size / heads."""
    config = Qwen3Config(**LLAMA, pad_token_id=PAD, tie_word_embeddings=True, head_dim=16)
    return save_tiny(tmp_path_factory.mktemp("tiny") / "qwen3", config)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Absolute positions, and three dropouts of 0.1."""
    config = GPT2Config(**SHARED, pad_token_id=PAD, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    assert (config.attn_pdrop, config.embd_pdrop, config.resid_pdrop) == (0.1, 0.1, 0.1)
    return save_tiny(tmp_path_factory.mktemp("tiny") / "gpt2", config)


@pytest.fixture(params=["tiny_llama", "tiny_llama_untied", "tiny_qwen3", "tiny_gpt2"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Every architecture in turn."""
    return request.getfixturevalue(request.param)
