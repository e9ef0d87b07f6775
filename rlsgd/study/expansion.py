"""From a study to its runs: arms x learning rates x seeds, each with its overlay config."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlsgd.core.composition import composed, composed_bytes
from rlsgd.study.arms import Arm, Precision, Study

COMPUTE, WEIGHTS = "trainer.precision", "model.init_args.weight_rounding"

# what each precision of an arm sets in the config
PRECISIONS: dict[Precision, dict[str, str | None]] = {
    "fp32": {COMPUTE: "32-true", WEIGHTS: None},
    "master": {COMPUTE: "bf16-mixed", WEIGHTS: None},
    "bf16": {COMPUTE: "bf16-true", WEIGHTS: None},
    "bf16-nearest": {COMPUTE: "32-true", WEIGHTS: "nearest"},
    "bf16-stochastic": {COMPUTE: "32-true", WEIGHTS: "stochastic"},
}

# What the study decides for every run; an override of these would falsify the report.
_OWNED = {
    ("seed_everything",): "seeds",
    ("trainer", "default_root_dir"): "out",
    ("trainer", "logger"): "out",
    ("trainer", "precision"): "arms.precision",
    ("model", "init_args", "optimizer"): "arms.optimizer and arms.optimizer_args",
    ("model", "init_args", "weight_rounding"): "arms.precision",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One arm with one seed: one `rlsgd fit` process.

    Args:
        arm: The arm, with a single learning rate.
        sweep: Name of the swept arm it was expanded from, or None.
        seed: Seed of model and data.
        folder: Where the run writes.
        after: Folder of the run that must have ended before, or None.
        config: The base config.
        overlay: What the run changes in the base config.
        fingerprint: Hash of base config and overlay, without the folder.
        max_epochs: Epochs the run will take, where its configs say so.
    """

    arm: Arm
    sweep: str | None
    seed: int
    folder: Path
    after: Path | None
    config: Path
    overlay: dict[str, Any]
    fingerprint: str
    max_epochs: int | None

    @property
    def title(self) -> str:
        """Name for the terminal."""
        return f"{self.arm.name} seed {self.seed}"


def expand_runs(study: Study) -> list[Run]:
    """The runs of a study in their order: all arms of the first seed, then of the next.

    Raises:
        ValueError: A config is no YAML mapping, the base config would add to an arm's optimizer
            arguments, or overrides conflict.
    """
    configs = dict.fromkeys(arm.config or study.config for arm in study.arms)
    texts = {config: composed_bytes(Path(config)) for config in configs}
    bases = {config: composed(Path(config)) for config in configs}
    out = study.folder.resolve()
    runs: list[Run] = []
    fingerprints: dict[tuple[str, int], str] = {}
    for seed in study.seeds:
        for family in study.arms:
            config = family.config or study.config
            for arm in family.expand():
                _require_complete(arm, bases[config])
                overlay = _overlay(study, arm, seed, out)
                # The folder is left out, so that a study moved elsewhere keeps its finished runs.
                identity = yaml.safe_dump(_overlay(study, arm, seed, Path()))
                if arm.after:  # what follows another run has to follow it again when it changes
                    identity += fingerprints[arm.after, seed]
                fingerprint = hashlib.sha256(texts[config] + b"\0" + identity.encode()).hexdigest()
                fingerprints[arm.name, seed] = fingerprint
                run = Run(
                    arm=arm,
                    sweep=family.name if family.is_sweep else None,
                    seed=seed,
                    folder=run_folder(out, arm.name, seed),
                    after=run_folder(out, arm.after, seed) if arm.after else None,
                    config=Path(config),
                    overlay=overlay,
                    fingerprint=fingerprint,
                    max_epochs=_max_epochs(bases[config], overlay),
                )
                runs.append(run)
    return runs


def run_folder(out: Path, arm: str, seed: int) -> Path:
    return out / arm / f"seed-{seed}"


def _overlay(study: Study, arm: Arm, seed: int, out: Path) -> dict[str, Any]:
    folder = str(run_folder(out, arm.name, seed))
    named = {"seed": str(seed)}
    if arm.after:
        named["after"] = str(run_folder(out, arm.after, seed))
    overlay: dict[str, Any] = {}
    apply_overrides(overlay, study.overrides, "overrides")
    for config in (*study.overlays, *arm.overlays):
        apply_overrides(overlay, composed(Path(config)), f"overlay {config}")
    apply_overrides(overlay, _filled(arm.overrides, named), f"overrides of arm {arm.name!r}")
    optimizer = _component(arm.optimizer, {"lr": arm.learning_rate, **arm.optimizer_args})
    owned = {
        "seed_everything": seed,
        "trainer.default_root_dir": folder,
        **PRECISIONS[arm.precision],
        "trainer.logger": loggers(Path(folder)),
        "model.init_args.optimizer": optimizer,
    }
    for key, value in owned.items():
        merge(overlay, key.split("."), value, key)
    return overlay


def loggers(folder: Path) -> list[dict[str, Any]]:
    """What writes to TensorBoard and `metrics.csv`, right in the folder of a run."""
    place = {"save_dir": str(folder), "name": "", "version": ""}
    return [
        _component("lightning.pytorch.loggers.TensorBoardLogger", place),
        _component("lightning.pytorch.loggers.CSVLogger", place | {"flush_logs_every_n_steps": 1}),
    ]


def _filled(value: Any, named: dict[str, str]) -> Any:
    """`value` with `{name}` replaced in every text it holds."""
    if isinstance(value, dict):
        return {key: _filled(inner, named) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, named) for inner in value]
    if isinstance(value, str):
        for name, text in named.items():
            value = value.replace(f"{{{name}}}", text)
    return value


def _require_complete(arm: Arm, base: dict[str, Any]) -> None:
    """Refuse a base config that wrote arguments for another optimizer, which the arm would keep.

    AdamW's weight decay in the base config would be SGD's, where it is L2 and moves every weight.
    What it writes for the arm's own class is the arm's: a config and what is changed in it.
    """
    optimizer: Any = base
    for key in ("model", "init_args", "optimizer"):
        optimizer = optimizer.get(key) if isinstance(optimizer, dict) else None
    if not isinstance(optimizer, dict):
        return
    own, written = arm.optimizer.rpartition(".")[2], str(optimizer.get("class_path"))
    if written.rpartition(".")[2] == own:
        return
    inherited = sorted(set(optimizer.get("init_args") or {}) - {"lr", *arm.optimizer_args})
    if inherited:
        raise ValueError(
            f"arms.optimizer_args of {arm.name!r} must say {', '.join(inherited)}: the base config"
            f" writes it for {written}, and {own} would keep it. State it in the arm, or take it"
            " out of the base config"
        )


def _component(class_path: str, init_args: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": dict(init_args)}


def apply_overrides(overlay: dict[str, Any], overrides: dict[str, Any], where: str) -> None:
    """Set dotted keys in an overlay; what the study itself decides is refused."""
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise ValueError(f"{where}: {key!r} is no dotted key, such as trainer.max_epochs")
        for leaf in _leaves(key.split("."), value):
            for owned, replacement in _OWNED.items():
                length = min(len(leaf), len(owned))
                if leaf[:length] == owned[:length]:
                    raise ValueError(
                        f"{where}: {key} would replace {'.'.join(owned)}, which the study sets:"
                        f" use {replacement}"
                    )
        merge(overlay, key.split("."), value, f"{where}: {key}")


def _leaves(path: list[str], value: Any) -> Iterator[tuple[str, ...]]:
    """Paths of the values that an override sets; `logger+` (append) counts as `logger`."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves([*path, str(key)], inner)
    else:
        yield tuple(part.rstrip("+") for part in path)


def merge(into: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    """Set a nested value in place; mappings merge, everything else replaces.

    A component of one class replaces that of another: its arguments would be the wrong ones.
    """
    head, *rest = path
    if rest:
        inner = into.setdefault(head, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{where} needs a mapping at {head!r}, where another override is set")
        merge(inner, rest, value, where)
    elif isinstance(value, dict) and isinstance(into.get(head), dict):
        if len({one["class_path"] for one in (value, into[head]) if "class_path" in one}) == 2:
            into[head] = {}
        for key, nested in value.items():
            merge(into[head], [key], nested, where)
    elif isinstance(into.get(head), dict):
        raise ValueError(f"{where} would replace the mapping that another override sets")
    else:
        into[head] = deepcopy(value)


def _max_epochs(base: dict[str, Any], overlay: dict[str, Any]) -> int | None:
    for mapping in (overlay, base):
        epochs = (mapping.get("trainer") or {}).get("max_epochs")
        if epochs is not None:
            return epochs if isinstance(epochs, int) and epochs > 0 else None
    return None
