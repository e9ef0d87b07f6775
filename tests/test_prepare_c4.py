"""What `rlsgd data prepare c4` makes of a copy of C4: text, and the models of arXiv:2605.17787."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import SentencePieceUnigramTokenizer
from transformers import AutoConfig, AutoModelForCausalLM, T5Tokenizer

from rlsgd.data.text import TextDataModule
from rlsgd.models.loading import load_tokenizer
from rlsgd.preparation import c4
from rlsgd.preparation.command import main

DOCUMENTS = [
    f"Document {number} of a small crawl.\nIt says <extra_id_{number}> in plain words, "
    + "and what follows is the same in all of them. " * number
    for number in range(1, 25)
]
PIECES = 60


def write_shard(folder: Path, number: int, documents: list[str]) -> Path:
    """A shard with the columns and the name that allenai/c4 gives it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": f"http://example.org/{n}"}
        for n, text in enumerate(documents)
    ]
    path = folder / f"c4-train.{number:05d}-of-01024.json.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def save_t5_tokenizer(folder: Path) -> str:
    """A tokenizer of T5's class: pad, eos, unk, learned pieces, and 100 sentinels at the end."""
    learned = SentencePieceUnigramTokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    plain = [text.replace("<extra_id_", "<") for text in DOCUMENTS]
    learned.train_from_iterator(
        plain, vocab_size=PIECES, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    pieces = [tuple(piece) for piece in json.loads(learned.to_str())["model"]["vocab"]]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    T5Tokenizer(vocab=[*pieces, *sentinels]).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A cache, a copy of two shards with a shard of another variant beside them, a tokenizer."""
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    write_shard(tmp_path / "copy" / "en", 0, DOCUMENTS[:14])
    write_shard(tmp_path / "copy" / "en", 1, DOCUMENTS[14:])
    write_shard(tmp_path / "copy" / "en.noblocklist", 2, ["of another variant"])
    return tmp_path / "copy", save_t5_tokenizer(tmp_path / "t5")


def test_a_copy_becomes_text_and_three_models(copy, tmp_path):
    folder, tokenizer = copy
    command = [
        sys.executable,
        "-m",
        "rlsgd",
        "data",
        "prepare",
        "c4",
        "--from",
        str(folder),
        "--shards",
        "2",
    ]
    command += ["--tokenizer", tokenizer]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--data.path c4-en (2 of 1,024 shards" in done.stdout
    models = []
    for size in ("130m", "350m", "1b"):
        assert f"--model.policy llama-c4-{size} --model.random_weights true" in done.stdout
        place = tmp_path / "cache" / f"llama-c4-{size}"
        assert not list(place.glob("*.safetensors")) and not list(place.glob("*.bin"))
        with torch.device("meta"):
            models.append(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place)))
    data = TextDataModule("c4-en", "llama-c4-130m", sequence_length=16, val_fraction=0.1)
    assert data._documents == DOCUMENTS
    data.setup("validate")
    # every document whole, with one </s>, and no token beyond the model's vocabulary
    own = load_tokenizer("llama-c4-130m")
    train, held_out = data.split
    assert sorted(train + held_out) == sorted(DOCUMENTS)
    pieces = [own(text)["input_ids"] for text in train]
    assert data.train_stream.token_ids.tolist() == [token for ids in pieces for token in ids]
    assert all(ids.count(own.eos_token_id) == 1 and ids[-1] == own.eos_token_id for ids in pieces)
    assert data.train_stream.token_ids.max() < PIECES
    blocks = data.blocks(data.train_stream, [0, 1])
    for model in models:
        assert model(blocks.input_ids.to("meta")).logits.shape == (2, 16, PIECES)


def test_the_tokenizer_loses_its_sentinels_and_nothing_else(copy):
    _, path = copy
    t5, own = T5Tokenizer.from_pretrained(path), c4.load_tokenizer(path)
    assert (len(t5), len(own)) == (PIECES + 100, PIECES)
    kept = {token: n for token, n in t5.get_vocab().items() if "<extra_id_" not in token}
    assert own.get_vocab() == kept
    for text in (DOCUMENTS[2].replace("<extra_id_3>", "three"), "  two  spaces, and ünknown"):
        assert own(text)["input_ids"] == t5(text)["input_ids"]
    special = ("eos_token_id", "pad_token_id", "unk_token_id")
    assert [getattr(own, name) for name in special] == [1, 0, 2]


def test_a_tokenizer_whose_sentinels_are_in_the_middle_is_refused(copy):
    _, path = copy
    tokenizer = T5Tokenizer.from_pretrained(path)
    tokenizer.add_tokens(["afterwards"])
    with pytest.raises(ValueError, match=r"--tokenizer here: its <extra_id_\.\.\.> are not"):
        c4.without_sentinels(tokenizer, "here")


@pytest.mark.parametrize(
    ("size", "hidden", "feed_forward", "layers", "heads", "weights"),
    [
        ("130m", 768, 2048, 12, 12, 134_105_856),
        ("350m", 1024, 2736, 24, 16, 367_969_280),
        ("1b", 2048, 5461, 24, 32, 1_339_082_752),
    ],
)
def test_sizes_are_the_papers(copy, size, hidden, feed_forward, layers, heads, weights):
    """Weights by hand: 2 V h + L (4 h h + 3 h f + 2 h) + h, with V = 32,000."""
    _, path = copy
    by_hand = 2 * 32_000 * hidden + hidden
    by_hand += layers * (4 * hidden**2 + 3 * hidden * feed_forward + 2 * hidden)
    assert by_hand == weights
    config = c4.make_config(size, c4.load_tokenizer(path))
    assert config.num_attention_heads == config.num_key_value_heads == heads
    config.vocab_size = 32_000
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == weights
    assert len(model.model.layers) == layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shards", "0"], "--shards 0 must be from 1 to 1024"),
        (["--shards", "3"], "--from .* lacks 1 of the 3 shards .*c4-train.00002-of-01024.json.gz"),
        (["--tokenizer", "no/where/at/all"], "--tokenizer no/where/at/all could not be loaded"),
    ],
)
def test_wrong_arguments_are_refused_without_a_traceback(copy, arguments, message, capsys):
    folder, tokenizer = copy
    usual = ["--from", str(folder), "--tokenizer", tokenizer, "--shards", "2"]
    assert main(["prepare", "c4", *usual, *arguments]) == 2
    said = capsys.readouterr().err
    assert re.match(rf"rlsgd data prepare c4: error: {message}", said), said


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b""),
        gzip.compress(b"no JSON\n"),
        gzip.compress(b'{"body": "no text"}\n'),
        gzip.compress(b'{"text": 3}\n'),
        gzip.compress(b'{"text": "cut off"}\n' * 99)[:-9],
    ],
    ids=["no gzip", "empty", "no JSON", "no column", "no string", "cut off"],
)
def test_a_bad_shard_is_refused_and_the_text_of_before_stays(copy, tmp_path, content):
    folder, _ = copy
    good = c4.copied(folder, 2)
    written = c4.write_text(good, tmp_path / "cache")
    before = {file.name: file.read_bytes() for file in written.iterdir()}
    assert before.keys() == {"00000.jsonl", "00001.jsonl"}
    good[1].write_bytes(content)
    with pytest.raises(ValueError, match=r"00001-of-01024.json.gz is no whole shard of C4"):
        c4.write_text(good, tmp_path / "cache")
    assert {file.name: file.read_bytes() for file in written.iterdir()} == before
    assert [entry.name for entry in written.parent.iterdir()] == ["c4-en"]


def test_fewer_shards_leave_none_of_before(copy, tmp_path):
    folder, _ = copy
    c4.write_text(c4.copied(folder, 2), tmp_path / "cache")
    written = c4.write_text(c4.copied(folder, 1), tmp_path / "cache")
    assert [file.name for file in written.iterdir()] == ["00000.jsonl"]


def test_without_a_way_to_the_hub_the_error_names_the_flag(copy, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"could not be fetched from the hub; .* by --from"):
        c4.download(1)
