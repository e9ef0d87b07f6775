"""Causal language models: loading, sharding, scoring, and the critic."""

from rlsgd.core.renamed import moved_names

__getattr__ = moved_names(
    "rlsgd.models",
    "rlsgd.models.loading",
    "EMBEDDED PREPARED_BY cache_folder check_positions check_vocabulary keep_special_tokens"
    " load_config load_policy load_reference load_tokenizer resolve_model stop_token_ids",
)
