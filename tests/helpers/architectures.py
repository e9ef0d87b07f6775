"""Tiny random models of every architecture that the table of docs/models.md is about."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlsgd.models.loading import without_noise
from tests.helpers.tiny_models import EOS, PAD, VOCABULARY

LAYERS = 2
COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
SLIDING: dict[str, Any] = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
}
MIXTURE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT: dict[str, Any] = {
    **MIXTURE,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "head_dim": 4,
}
STATE_SPACE: dict[str, Any] = {"state_size": 4, "conv_kernel": 3, "expand": 2, "time_step_rank": 4}
GPT: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "n_inner": 48,
}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
    "layer_types": ["linear_attention", "full_attention"],
}
ENCODER: dict[str, Any] = {
    "d_model": 32,
    "decoder_layers": LAYERS,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "is_encoder_decoder": False,
    "is_decoder": True,
}
MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 4,
    "mamba_n_groups": 1,
    "mamba_d_conv": 3,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 16,
}

# name -> (model type, settings beside COMMON); the same type may stand under several names
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 6}),
    "ministral": ("ministral", SLIDING),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {**SLIDING, "use_sliding_window": True}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {**SLIDING, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**SLIDING, "query_pre_attn_scalar": 8}),
    "smollm3": ("smollm3", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", SLIDING),
    "granite": ("granite", {"logits_scaling": 2.0, "attention_multiplier": 0.3}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "cohere2": ("cohere2", {**SLIDING, "logit_scale": 0.5}),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "starcoder2-window": ("starcoder2", {"sliding_window": 6}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "phi3-longrope": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    ),
    "persimmon": ("persimmon", {}),
    "helium": ("helium", {}),
    "nemotron": ("nemotron", {}),
    "exaone4": ("exaone4", SLIDING),
    "seed-oss": ("seed_oss", {}),
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "diffllama": ("diffllama", {}),
    "nanochat": ("nanochat", {}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "ernie4.5": ("ernie4_5", {}),
    "bitnet": ("bitnet", {}),
    "gpt2": ("gpt2", GPT),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "gpt-neo": (
        "gpt_neo",
        {
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
            "num_layers": LAYERS,
            "num_heads": 4,
        },
    ),
    "gpt-neox": ("gpt_neox", {}),
    "gpt-bigcode": ("gpt_bigcode", GPT),
    "openai-gpt": ("openai-gpt", {**GPT, "n_ctx": 64}),
    "codegen": ("codegen", {**GPT, "rotary_dim": 4, "n_ctx": 64}),
    "bloom": ("bloom", {"n_layer": LAYERS, "n_head": 4}),
    "mpt": (
        "mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 64, "expansion_ratio": 2},
    ),
    "falcon": ("falcon", {"new_decoder_architecture": False, "multi_query": True, "alibi": False}),
    "falcon-alibi": (
        "falcon",
        {"alibi": True, "multi_query": False, "new_decoder_architecture": False},
    ),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "xglm": ("xglm", {"d_model": 32, "ffn_dim": 48, "num_layers": LAYERS, "attention_heads": 4}),
    "biogpt": ("biogpt", {}),
    "ctrl": ("ctrl", {**GPT, "dff": 48}),
    "cpmant": (
        "cpmant",
        {
            "dim_head": 8,
            "dim_ff": 48,
            "prompt_length": 4,
            "prompt_types": 4,
            "segment_types": 4,
            "position_bias_num_buckets": 16,
            "position_bias_max_distance": 64,
        },
    ),
    "bart": ("bart", ENCODER),
    "bert": ("bert", {"is_decoder": True}),
    "bert-bidirectional": ("bert", {"is_decoder": False}),
    "roberta": ("roberta", {"is_decoder": True}),
    "xlnet": ("xlnet", {"d_model": 32, "n_layer": LAYERS, "n_head": 4, "d_inner": 48}),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": 6}),
    "mixtral": ("mixtral", {**MIXTURE, "sliding_window": None}),
    "qwen2-moe": ("qwen2_moe", MIXTURE),
    "qwen3-moe": ("qwen3_moe", MIXTURE),
    "olmoe": ("olmoe", MIXTURE),
    "gpt-oss": ("gpt_oss", {**MIXTURE, **SLIDING}),
    "granite-moe": ("granitemoe", MIXTURE),
    "phimoe": ("phimoe", MIXTURE),
    "jetmoe": ("jetmoe", {**MIXTURE, "kv_channels": 8}),
    "deepseek-v2": ("deepseek_v2", LATENT),
    "deepseek-v3": ("deepseek_v3", {**LATENT, "head_dim": 4}),
    "glm4-moe": ("glm4_moe", {**MIXTURE, "n_shared_experts": 1}),
    "minimax": (
        "minimax",
        {**MIXTURE, "block_size": 4, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "llama4": ("llama4_text", {**MIXTURE, "attention_chunk_size": 8, "intermediate_size_mlp": 48}),
    "minicpm3": ("minicpm3", LATENT),
    "mamba": ("mamba", STATE_SPACE),
    "mamba2": (
        "mamba2",
        {
            "state_size": 4,
            "conv_kernel": 3,
            "expand": 2,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "falcon-mamba": ("falcon_mamba", STATE_SPACE),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 64}),
    "recurrent-gemma": (
        "recurrent_gemma",
        {
            "lru_width": 32,
            "attention_window_size": 6,
            "conv1d_width": 3,
            "block_types": ["recurrent", "attention"],
        },
    ),
    "jamba": (
        "jamba",
        {
            **MIXTURE,
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "mamba_d_state": 4,
            "mamba_d_conv": 3,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": ("bamba", {**MAMBA2, "attn_layer_indices": [1]}),
    "zamba": (
        "zamba",
        {
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "mamba_d_state": 4,
            "mamba_d_conv": 3,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
            "use_mamba_kernels": False,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "num_key_value_heads": 4,
        },
    ),
    "zamba2": (
        "zamba2",
        {
            "mamba_d_state": 4,
            "mamba_d_conv": 3,
            "mamba_headdim": 16,
            "n_mamba_heads": 4,
            "mamba_ngroups": 1,
            "chunk_size": 8,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "num_key_value_heads": 4,
            "adapter_rank": 4,
            "use_mem_rope": True,
        },
    ),
    "falcon-h1": ("falcon_h1", {**MAMBA2, "mamba_d_ssm": 64}),
    "granite-hybrid": (
        "granitemoehybrid",
        {
            **MIXTURE,
            **MAMBA2,
            "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention"],
        },
    ),
    "nemotron-h": (
        "nemotron_h",
        {
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 4,
            "n_groups": 1,
            "conv_kernel": 3,
            "chunk_size": 8,
            "layers_block_type": ["mamba", "attention"],
        },
    ),
    "lfm2": (
        "lfm2",
        {"conv_L_cache": 3, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    ),
    "qwen3-next": ("qwen3_next", {**MIXTURE, **LINEAR}),
    "olmo-hybrid": ("olmo_hybrid", LINEAR),
    "xlstm": ("xlstm", {"num_blocks": LAYERS, "num_heads": 4, "chunk_size": 8}),
}


def tiny_config(name: str) -> PretrainedConfig:
    """The config of one of `ARCHITECTURES`."""
    model_type, settings = ARCHITECTURES[name]
    accepted = AutoConfig.for_model(model_type)
    known = set(vars(accepted)) | set(getattr(accepted, "attribute_map", {}))
    common = {key: value for key, value in COMMON.items() if key in known}
    return AutoConfig.for_model(model_type, **{**common, **settings})


def tiny_model(name: str) -> PreTrainedModel:
    """A random float32 model in eval mode; its norms and biases are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tiny_config(name)
        without_noise(config)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()
