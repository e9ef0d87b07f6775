"""docs/resume.md shows the kind of every setting, as rlsgd/resume/changes.py has it."""

from __future__ import annotations

import inspect
from pathlib import Path

from lightning.pytorch import Trainer

from rlsgd import algorithms, data
from rlsgd.algorithms import PolicyModule
from rlsgd.data import TokenizedDataModule
from rlsgd.resume.changes import TABLE, kind_of

# from when a change takes effect; the rest of the page's words are the kinds'
WHEN = {
    "trainer.max_epochs": "the run ends after this many; fewer than are done is refused",
    "trainer.max_time": "from the resumption on, with the time that was counted before",
    "trainer.enable_checkpointing": "from the next iteration on",
    "trainer.callbacks": "from the next iteration on; a new one has not seen those before",
    "trainer.check_val_every_n_epoch": "from the next iteration on",
    "trainer.limit_val_batches": "from the next validation on",
    "data.val_batch_size": "from the next validation on",
    "data.reward_timeout_seconds": "from the next completion on",
    "model.activation_checkpointing": "from the next optimizer step on; the gradient is the same",
    "model.eval_samples": "from the next `rlsgd validate` or `rlsgd test` on",
    "model.eval_temperature": "from the next `rlsgd validate` or `rlsgd test` on",
}
WORDS = {None: "refused, with both values", "now": "takes effect", "place": "may change"}
RESULT = "changes no number of the run"


def arguments(found: type) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signature = inspect.signature(found.__init__).parameters.values()
    return [one.name for one in signature if one.name != "self" and one.kind not in kinds]


def settings() -> list[str]:
    """Every dotted key of `rlsgd fit`, without those below a class's own."""
    keys = ["seed_everything", "config", "ckpt_path", "print_config"]
    keys += [f"trainer.{name}" for name in arguments(Trainer)]
    for head, room, base in (
        ("model", algorithms, PolicyModule),
        ("data", data, TokenizedDataModule),
    ):
        own = [getattr(room, name) for name in room.__all__]
        own = [one for one in own if inspect.isclass(one) and issubclass(one, base)]
        names = dict.fromkeys(name for one in (base, *own) for name in arguments(one))
        linked = {"seed"} | ({"tokenizer"} if head == "data" else set())
        keys += [head, *(f"{head}.{name}" for name in names if name not in linked)]
    return keys


def table() -> str:
    rows = ["| setting | kind | from when |", "|---|---|---|"]
    for key in settings():
        kind = kind_of(key)
        when = {"now": WHEN.get(key, ""), "place": RESULT, None: ""}[kind]
        assert when or kind is None, f"{key}: say in WHEN from when it takes effect"
        rows.append(f"| `--{key}` | {WORDS[kind]} | {when} |")
    return "\n".join(rows)


def test_the_page_shows_every_setting_and_its_kind():
    assert TABLE.keys() <= set(settings()), "of settings that are not there"
    page = Path("docs/resume.md").read_text(encoding="utf-8")
    assert table() in page, "python -m tests.resume.test_resume_page prints the table"


if __name__ == "__main__":
    print(table())
