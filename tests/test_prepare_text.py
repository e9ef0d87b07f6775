"""What `rlsgd data prepare text` makes: documents, a tokenizer without losses, a config."""

import json
import re
from pathlib import Path

import pytest

from rlsgd.models.loading import load_policy, load_tokenizer, resolve_model
from rlsgd.preparation.command import main
from rlsgd.preparation.text import scenes
from tests.helpers.small_text import PLAY, POEM, prepare_small_text, write_archive


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path))
    prepare_small_text(tmp_path)
    return tmp_path


def test_documents_are_scenes_and_poems_of_modern_spelling(cache):
    lines = (cache / "text" / "shakespeare" / "shakespeare.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["work"] for row in rows] == ["a_play"] * 6 + ["a_poem"]
    texts = [row["text"] for row in rows]
    # title and heading of the act belong to the first scene; not a character is lost
    assert texts[0].startswith("THE PLAY\n\nACT I.\n\nScene 0. A room.")
    assert all(text.startswith(f"Scene {n}.") for n, text in enumerate(texts[1:6], start=1))
    squeezed = re.sub(r"\s+", "", "".join(texts))
    assert squeezed == re.sub(r"\s+", "", PLAY + POEM)


def test_a_short_piece_is_no_document_by_itself():
    body = "x" * 300
    assert scenes(f"{body}\nSCENE II.\nshort") == [f"{body}\nSCENE II.\nshort\n"]
    assert scenes(f"ACT I.\nScene 1.\n{body}\n[Scene 2.\n{body}") == [
        f"ACT I.\nScene 1.\n{body}\n",
        f"[Scene 2.\n{body}\n",
    ]
    assert scenes(f"{body}\nact upon it\n{'y' * 300}")[1].startswith("act"), "headings by word"


def test_the_tokenizer_writes_any_text_and_the_head_is_untied(cache):
    tokenizer = load_tokenizer("small-text-llama")
    for text in (PLAY, "Ünïcode \N{SNOWMAN}\n\ttabs  and  spaces"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == 1 and tokenizer.pad_token_id == 0
    policy = load_policy("small-text-llama", random_weights=True)
    head, embedding = policy.get_output_embeddings(), policy.get_input_embeddings()
    assert head.weight.data_ptr() != embedding.weight.data_ptr()
    assert head.weight.shape == (len(tokenizer), 128)
    assert not list(Path(resolve_model("small-text-llama")).glob("*.safetensors"))


def test_unprepared_names_say_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"small-text-llama: .*Run: rlsgd data prepare text"):
        resolve_model("small-text-llama")


def test_the_command_takes_an_archive_at_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path / "cache"))
    assert main(["prepare", "text", "--archive", str(write_archive(tmp_path))]) == 0
    said = capsys.readouterr().out
    assert "--data.path shakespeare (7 documents" in said and "small-text-llama" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text", "--archve", "a"], "data prepare text: error: --archve: .*did you mean --archive"),
        (["smollm2", "--archive", "a"], "data prepare smollm2: error: --archive: there is no such"),
        (
            ["--seed", "1", "text"],
            "data: error: NAME text must come first: rlsgd data prepare text",
        ),
        (
            ["text", "--archive", "no.tar.gz"],
            "data prepare text: error: archive no.tar.gz: No such",
        ),
        (["smollm2", "--wheel", "no.whl"], "data prepare smollm2: error: wheel no.whl: No such"),
        (["text", "--archive", "Makefile"], "data prepare text: error: --archive Makefile is no a"),
        (["smollm2", "--wheel", "Makefile"], "data prepare smollm2: error: --wheel Makefile is no"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path))
    assert main(["prepare", *arguments]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"rlsgd {message}.*\n", said), said
