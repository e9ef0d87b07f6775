"""What may change between a run and its resumption: everything else is refused.

`TABLE` gives the kind of every setting, by its dotted key; docs/resume.md shows it. `check_changes`
compares the settings of the run, as its `config.yaml` has them, with those that are given now.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

Kind = Literal["now", "place"]

# Dotted keys, without `init_args`, and what is below them; the longest key that fits decides.
# now: takes effect when training goes on; place: says where and how, not what is computed.
TABLE: dict[str, Kind] = {
    "trainer.max_epochs": "now",
    "trainer.max_time": "now",
    "trainer.enable_checkpointing": "now",
    "trainer.enable_progress_bar": "place",
    "trainer.enable_model_summary": "place",
    "trainer.log_every_n_steps": "place",
    "trainer.logger": "place",
    "trainer.default_root_dir": "place",
    "trainer.callbacks": "now",
    "trainer.check_val_every_n_epoch": "now",
    "trainer.limit_val_batches": "now",
    "trainer.limit_test_batches": "place",
    "trainer.limit_predict_batches": "place",
    "trainer.num_sanity_val_steps": "place",
    "trainer.profiler": "place",
    "trainer.fast_dev_run": "place",
    "data.val_batch_size": "now",
    "data.reward_timeout_seconds": "now",
    "model.activation_checkpointing": "now",
    "model.eval_samples": "now",
    "model.eval_temperature": "now",
    "ckpt_path": "place",
    "config": "place",
    "print_config": "place",
}


SCHEDULE = "model.init_args.lr_scheduler.init_args."
SAME = ("model", "data", "seed_everything")  # what makes two runs the same


def kind_of(key: str, settings: dict[str, Any] | None = None) -> Kind | None:
    """Kind of a setting by its dotted key; None where a change is refused.

    Args:
        key: with `init_args`, or without.
        settings: of the run: in a few schedulers everything takes effect.
    """
    if settings is not None and key.startswith(SCHEDULE) and _is_by_number(settings):
        return "now"
    parts = [part for part in key.split(".") if part != "init_args"]
    for length in range(len(parts), 0, -1):
        if found := TABLE.get(".".join(parts[:length])):
            return found
    return None


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted key and both values of every setting that differs, in the order of `before`.

    A class that differs is one change: its arguments are those of another class.
    """
    return list(_changes(before, now, ""))


def other_run(before: Any, now: dict[str, Any]) -> list[str]:
    """Settings that make two runs different ones, as `--flag NOW (there BEFORE)`.

    Args:
        before: settings of a run, as plain data; anything else is no run, and differs.
        now: those given.
    """
    if not isinstance(before, dict):
        return ["config.yaml (there none)"]
    pair = [{key: settings.get(key) for key in SAME} for settings in (before, now)]
    return [
        f"{_flag(key)} {_shown(new)} (there {_shown(old)})"
        for key, old, new in changes(*pair)
        if kind_of(key, now) is None
    ]


def check_changes(path: str, before: dict[str, Any], now: dict[str, Any], done: int) -> list[str]:
    """Refuse what cannot change when a run goes on, and say what does.

    Args:
        path: of the checkpoint, for the message.
        before: settings of the run, as plain data.
        now: those given.
        done: epochs that the checkpoint has behind it.

    Returns:
        A line for each change that takes effect.

    Raises:
        ValueError: names the flag and both values.
    """
    lines = []
    for key, old, new in changes(before, now):
        kind, flag = kind_of(key, now), _flag(key)
        if kind is None:
            raise ValueError(
                f"{flag} {_shown(new)}: the run of --ckpt_path {path} has {_shown(old)}, and this "
                "cannot change when a run goes on; start a new run, or leave it as it was"
            )
        if key == "trainer.max_epochs" and isinstance(new, int) and 0 <= new < done:
            raise ValueError(
                f"{flag} {new}: --ckpt_path {path} has {done} epochs behind it (the run had "
                f"{_shown(old)}); give at least {done}"
            )
        if kind == "now":
            lines.append(f"{flag} {_shown(new)} from here on; it was {_shown(old)}")
    return lines


def settings_of(checkpoint: Path) -> dict[str, Any] | None:
    """The settings that the run of a checkpoint was started with; None where they are gone."""
    for folder in (checkpoint.parent.parent, checkpoint.parent):
        path = folder / "config.yaml"
        if path.is_file():
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
    return None


def _changes(before: Any, now: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if before == now:
        return
    if not (isinstance(before, dict) and isinstance(now, dict)):
        yield key, before, now
    elif before.get("class_path") != now.get("class_path"):
        yield f"{key}.class_path" if key else "class_path", before, now
    else:
        for name in dict.fromkeys([*before, *now]):
            inner = f"{key}.{name}" if key else name
            if name not in before and (key in ("", "trainer") or key.endswith(".init_args")):
                continue  # an argument that rlsgd did not have when the run began
            yield from _changes(before.get(name), now.get(name), inner)


def _is_by_number(now: dict[str, Any]) -> bool:
    """Whether the scheduler computes the rate from its arguments, not from a checkpoint's."""
    scheduler = now["model"]["init_args"]["lr_scheduler"]["class_path"]
    return scheduler.rpartition(".")[2] == "WarmupCosine"


def _flag(key: str) -> str:
    return "--" + key.replace(".init_args", "").removesuffix(".class_path")


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return "null" if value is None else str(value)
