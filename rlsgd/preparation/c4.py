"""Prepare C4 and the models that arXiv:2605.17787 pre-trains on it, all in the cache.

    rlsgd data prepare c4 [--from FOLDER] [--tokenizer google-t5/t5-base] [--shards 18]

The text is the English part of C4 (ODC-BY) as allenai/c4 has it: JSON lines with a column `text`,
compressed, in 1,024 shards. The models are Llamas with an output layer of their own and the
tokenizer of T5 without its 100 sentinels, so 32,000 tokens; their weights are random and never
written to disk. A shard has about 0.15 billion tokens: the steps of 130M are one pass over 18
shards, of 350M over 52, of 1B over 132; with fewer, training goes through the text again.
Where there is no way to the hub, copy the shards and the tokenizer from elsewhere: --from is then
the folder with `c4-train.00000-of-01024.json.gz` and so on (or with `en/`, which has them).
Afterwards: --data.path c4-en --model.policy llama-c4-130m --model.random_weights true
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlsgd.models.names import cache_folder

TEXT = "c4-en"
SHARD = "c4-train.{:05d}-of-01024.json.gz"
SENTINEL = re.compile(r"<extra_id_\d+>")
# hidden size, feed-forward size, layers, heads: the configurations of GaLore (arXiv:2403.03507),
# which the paper's code names
SIZES = {
    "130m": (768, 2048, 12, 12),
    "350m": (1024, 2736, 24, 16),
    "1b": (2048, 5461, 24, 32),
}


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A tokenizer with an end-of-sequence and a padding token, its sentinels taken out.

    Raises:
        ValueError: there is none of that name, it lacks a token, or sentinels are not its last.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--tokenizer {path} could not be loaded; where there is no way to the hub, name a "
            f"folder with a copy: {error}"
        ) from error
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise ValueError(f"--tokenizer {path} has no eos or no pad token; take T5's or add them")
    return without_sentinels(tokenizer, path)


def without_sentinels(tokenizer: PreTrainedTokenizerBase, path: str) -> PreTrainedTokenizerBase:
    """The tokenizer without T5's `<extra_id_...>`; all other tokens keep their numbers."""
    sentinels = {token: n for token, n in tokenizer.get_vocab().items() if SENTINEL.match(token)}
    if not sentinels:
        return tokenizer
    size = len(tokenizer) - len(sentinels)
    if min(sentinels.values()) != size:
        raise ValueError(f"--tokenizer {path}: its <extra_id_...> are not the last of its tokens")
    content = json.loads(tokenizer.backend_tokenizer.to_str())  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    content["added_tokens"] = [one for one in content["added_tokens"] if one["id"] < size]
    content["model"]["vocab"] = content["model"]["vocab"][:size]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        pad_token=tokenizer.pad_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
    )


def download(shards: int) -> list[Path]:
    """The first shards, from the hub."""
    from huggingface_hub import hf_hub_download

    try:
        return [
            Path(hf_hub_download("allenai/c4", f"en/{SHARD.format(number)}", repo_type="dataset"))
            for number in range(shards)
        ]
    except OSError as error:
        raise ValueError(
            "allenai/c4 could not be fetched from the hub; where there is no way to it, give a "
            f"folder with its shards by --from: {type(error).__name__}: {error}"
        ) from error


def copied(folder: Path, shards: int) -> list[Path]:
    """The first shards, in a folder or in its subfolder `en`."""
    inside = folder / "en" if (folder / "en").is_dir() else folder
    files = [inside / SHARD.format(number) for number in range(shards)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"--from {folder} lacks {len(missing)} of the {shards} shards that --shards asks for: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        )
    return files


def write_text(files: list[Path], cache: Path) -> Path:
    """Uncompressed JSON lines in the cache, one file for each shard; they appear all at once."""
    folder = cache / "text" / TEXT
    partial = folder.with_name(f".{TEXT}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, path in enumerate(files):
        with (partial / f"{number:05d}.jsonl").open("wb") as plain:
            try:
                with gzip.open(path, "rb") as packed:
                    check_row(packed.readline())
                    packed.seek(0)
                    shutil.copyfileobj(packed, plain)
            except (OSError, EOFError, zlib.error, ValueError) as error:
                shutil.rmtree(partial)
                raise ValueError(f"{path} is no whole shard of C4: {error}") from error
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier preparation
    partial.rename(folder)
    return folder


def check_row(line: bytes) -> None:
    """Refuse what is no row of C4."""
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError("its first line is no JSON object with a `text`")


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


def prepare(source: Path | None, tokenizer_path: str, shards: int) -> None:
    """Write the text and the models' folders into the cache."""
    if not 1 <= shards <= 1024:
        raise ValueError(f"--shards {shards} must be from 1 to 1024")
    tokenizer = load_tokenizer(tokenizer_path)
    files = copied(source, shards) if source else download(shards)
    cache = cache_folder()
    folder = write_text(files, cache)
    print(f"ready: --data.path {TEXT} ({len(files):,} of 1,024 shards, in {folder})")
    for size in SIZES:
        place = cache / f"llama-c4-{size}"
        tokenizer.save_pretrained(place)
        make_config(size, tokenizer).save_pretrained(place)
        print(f"ready: --model.policy {place.name} --model.random_weights true ({place})")
