from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from tensorboard.plugin_util import markdown_to_safe_html

from rlsgd.callbacks import CompletionLog
from rlsgd.callbacks.completions import completion_records
from rlsgd.callbacks.loggers import markdown_cell, markdown_table
from tests.callbacks.callback_stub import (
    PolicyStub,
    events,
    jsonl,
    loader,
    make_rollouts,
    make_trainer,
)

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a | b | c\n|---|---|\n| d |",
    "`code` ```\nfence\n``` ~~~",
    "# heading\n\n- list\n1. list\n> quote\n---\n***bold*** __x__ ~~y~~",
    "[link](http://x.y) ![image](http://x.y/z.png) <http://x.y> [1]: http://x.y",
    "&lt;b&gt; &amp;amp; &#124; \\| \\\\ $x_1^2$ {}",
    "é 漢字 🙂 \u202e right to left \u2028 line \x85 line",
    "    indented\n\ttab \"quotes\" 'quotes'",
    "",
]


class Table(HTMLParser):
    """The texts of a table's cells, and every tag that was met."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data


def squeezed(text: str) -> str:
    """A browser shows any run of blanks as one; line breaks it keeps."""
    return " ".join(text.replace("\n", " [newline] ").split())


def train(folder: Path, tmp_path: Path, callback: CompletionLog, batches: list, epochs: int = 1):
    trainer = make_trainer(tmp_path, [callback], epochs=epochs)
    trainer.fit(PolicyStub(folder, lambda p: torch.optim.SGD(p.parameters())), loader(batches))


@pytest.mark.parametrize("text", HOSTILE)
def test_tensorboard_shows_the_text_and_nothing_but_the_text(text: str):
    callback = CompletionLog()
    record = {"prompt": text, "completion": text, "answer": "4", "reward": 0.5}
    plain = {"prompt": "p", "completion": "c", "answer": "4", "reward": None}
    table = Table(markdown_to_safe_html(markdown_table(*callback.table([record, plain]))))
    assert table.tags <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    assert table.rows[0] == ["prompt", "completion", "answer", "reward"]
    assert [squeezed(cell) for cell in table.rows[1]] == [squeezed(text)] * 2 + ["4", "0.500"]
    assert table.rows[2] == ["p", "c", "4", ""]


def test_control_characters_are_made_visible():
    text = "a\x00b\x02c\rd\r\ne\x1b[31m"
    cell = markdown_cell(text)
    assert Table(f"<table><tr><td>{cell}").rows == [["a\ufffdb\ufffdc\ufffdd\ne\ufffd[31m"]]


def test_long_texts_are_cut_before_they_are_escaped():
    callback = CompletionLog(max_characters=3)
    assert markdown_cell(callback.cut("|||")) == "&#124;" * 3
    assert markdown_cell(callback.cut("||||")) == "&#124;" * 3 + "&#46;" * 3


def test_the_first_completions_of_a_rollout_are_logged_whole(tiny_llama: Path, tmp_path: Path):
    long = "x" * 5000 + "\n<b>|"
    batch = make_rollouts([long, "7", "8"], [1.0, 0.25, 0.0])
    train(tiny_llama, tmp_path, CompletionLog(every_n_epochs=2, count=2), [batch], epochs=3)
    shared = {"prompt": "2+2=", "answer": "4"}
    texts = [
        {"completion": long, "reward": 1.0, "truncated": False},
        {"completion": "7", "reward": 0.25, "truncated": True},
    ]
    assert jsonl(tmp_path / "completions.jsonl") == [
        {"epoch": epoch, "global_step": epoch, **shared, **text}  # one optimizer step an epoch
        for epoch in (1, 2)
        for text in texts
    ]
    (tag,) = events(tmp_path).Tags()["tensors"]
    first, second = events(tmp_path).Tensors(tag)
    assert (first.step, second.step) == (1, 2)
    markdown = first.tensor_proto.string_val[0].decode()
    assert len(markdown.splitlines()) == 4 and "x" * 2000 + "&#46;&#46;&#46; |" in markdown


def test_only_the_first_microbatch_of_a_rollout_is_logged(tiny_llama: Path, tmp_path: Path):
    train(tiny_llama, tmp_path, CompletionLog(), [make_rollouts(), make_rollouts()], epochs=2)
    records = jsonl(tmp_path / "completions.jsonl")
    assert [record["epoch"] for record in records] == [0, 0, 1, 1]
    assert [record["global_step"] for record in records] == [0, 0, 2, 2]


def test_supervised_batches_have_no_reward(tiny_llama: Path, tmp_path: Path):
    train(tiny_llama, tmp_path, CompletionLog(), [make_rollouts(rewards=None)])
    records = jsonl(tmp_path / "completions.jsonl")
    assert [(record["completion"], record["reward"]) for record in records] == [
        ("4", None),
        ("7", None),
    ]


def test_batches_without_texts_are_passed_over(tiny_llama: Path, tmp_path: Path):
    batch = make_rollouts()
    batch.completions = []
    train(tiny_llama, tmp_path, CompletionLog(), [batch])
    assert not (tmp_path / "completions.jsonl").exists()


def test_every_prediction_is_written_once(tiny_llama: Path, tmp_path: Path):
    batches = [make_rollouts([f"{i}a", f"{i}b"]) for i in range(3)]
    module = PolicyStub(tiny_llama, lambda p: torch.optim.SGD(p.parameters()))
    for _ in range(2):  # the second run replaces what the first one wrote
        trainer = make_trainer(tmp_path, [CompletionLog(every_n_epochs=5, count=1)])
        trainer.predict(module, loader(batches, shuffle=False))
    records = jsonl(tmp_path / "predictions.jsonl")
    assert [r["completion"] for r in records] == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert [r["reward"] for r in records] == [1.0, 0.0] * 3


def test_records_must_be_complete():
    batch = make_rollouts()
    batch.completions = ["one too few"]
    with pytest.raises(ValueError, match="zip"):
        completion_records(batch)
