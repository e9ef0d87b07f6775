"""Prepare C4 and the models that arXiv:2605.17787 pre-trains on it, all in the cache.

    python tools/prepare_c4.py [--from FOLDER] [--tokenizer google-t5/t5-base] [--shards 18]

The text is the English part of C4 (ODC-BY) as allenai/c4 has it: JSON lines with a column `text`,
compressed, in 1,024 shards. The models are Llamas with an output layer of their own and the
tokenizer of T5; their weights are random and never written to disk. A shard has about 0.15 billion
tokens: the steps of 130M are one pass over 18 shards, of 350M over 52, of 1B over 132; with fewer,
training goes through the text again.
Afterwards: --data.path c4-en --model.policy llama-c4-130m --model.random_weights true
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from rlsgd.models import cache_folder

TEXT = "c4-en"
SHARD = "en/c4-train.{:05d}-of-01024.json.gz"
# hidden size, feed-forward size, layers, heads: the configurations of GaLore (arXiv:2403.03507),
# which the paper's code names
SIZES = {
    "130m": (768, 2048, 12, 12),
    "350m": (1024, 2736, 24, 16),
    "1b": (2048, 5461, 24, 32),
}


def download(shards: int) -> list[Path]:
    """The first shards, from the hub."""
    from huggingface_hub import hf_hub_download

    names = [SHARD.format(number) for number in range(shards)]
    return [Path(hf_hub_download("allenai/c4", name, repo_type="dataset")) for name in names]


def copied(folder: Path, shards: int) -> list[Path]:
    """The first shards in a folder."""
    found = sorted(folder.rglob("c4-train.*.json.gz"))
    if len(found) < shards:
        raise SystemExit(f"--from {folder} has {len(found)} files c4-train.*.json.gz, not {shards}")
    return found[:shards]


def write_text(files: list[Path], cache: Path) -> Path:
    """Uncompressed JSON lines in the cache, one file for each shard."""
    folder = cache / "text" / TEXT
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jsonl"):
        old.unlink()  # of an earlier preparation with more shards
    for number, path in enumerate(files):
        target = folder / f"{number:05d}.jsonl"
        with gzip.open(path, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    return folder


def make_config(size: str, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """A model of one size that knows every token of the tokenizer."""
    hidden, feed_forward, layers, heads = SIZES[size]
    special: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    return LlamaConfig(
        vocab_size=len(tokenizer),  # pyright: ignore[reportArgumentType]
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        **special,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, help="a folder with the shards")
    parser.add_argument("--tokenizer", default="google-t5/t5-base", help="name or folder")
    parser.add_argument("--shards", type=int, default=18, help="of 1,024 (default: 18)")
    arguments = parser.parse_args()
    if not 1 <= arguments.shards <= 1024:
        raise SystemExit(f"--shards {arguments.shards} must be from 1 to 1024")
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    shards = arguments.shards
    files = copied(arguments.source, shards) if arguments.source else download(shards)
    cache = cache_folder()
    folder = write_text(files, cache)
    print(f"ready: --data.path {TEXT} ({len(files):,} of 1,024 shards, in {folder})")
    for size in SIZES:
        place = cache / f"llama-c4-{size}"
        tokenizer.save_pretrained(place)
        make_config(size, tokenizer).save_pretrained(place)
        print(f"ready: --model.policy {place.name} --model.random_weights true ({place})")


if __name__ == "__main__":
    main()
