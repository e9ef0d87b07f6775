"""A changed setting meets a checkpoint by its file, by `last` in a named folder, and by `last`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rlsgd.cli.readback import check_resumed
from rlsgd.core.run_folder import ORDER
from rlsgd.resume import AtomicCheckpointIO
from rlsgd.resume.command_line import last_checkpoint
from rlsgd.resume.files import read_checkpoint
from tests.resume.test_changes import REFUSED, RUN, TAKES_EFFECT, changed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, beside one of another seed that was started later."""
    root = tmp_path_factory.mktemp("runs")
    for order, (name, settings) in enumerate(
        {"run": RUN, "later": changed("seed_everything", 9)}.items()
    ):
        path = root / name / "checkpoints" / "iteration=3.ckpt"
        progress = {"epoch_progress": {"current": {"processed": 3}}}
        path.parent.mkdir(parents=True)
        AtomicCheckpointIO().save_checkpoint({"loops": {"fit_loop": progress}}, path)
        (root / name / "config.yaml").write_text(yaml.safe_dump(settings))
        (root / name / ORDER).write_text(str(order))
    return root / "run"


def go_on(run: Path, way: str, given: dict[str, Any]) -> None:
    path: Path | None = run / "checkpoints" / "iteration=3.ckpt"
    if way != "file":
        named = run if way == "last in a folder" else None
        path = last_checkpoint(named, run.parent, given=given, go_on=True)
    assert path is not None and path.parents[1] == run
    trainer = SimpleNamespace(is_global_zero=True)
    check_resumed(trainer, path, read_checkpoint(path), given)


@pytest.mark.parametrize("way", ["file", "last in a folder", "last"])
@pytest.mark.parametrize("key", [*REFUSED, *TAKES_EFFECT])
def test_each_setting_by_each_way(key: str, way: str, run: Path, capsys: Any):
    value = {**REFUSED, **TAKES_EFFECT}[key]
    flag = "--" + key.replace(".init_args", "").removesuffix(".class_path")
    old: Any = RUN
    for part in key.split("."):
        old = old[part]
    if key in TAKES_EFFECT:
        go_on(run, way, changed(key, value))
        said = capsys.readouterr().out
        assert said.startswith(f"rlsgd: {flag} ") and " from here on; it was " in said
        return
    with pytest.raises(ValueError) as refused:
        go_on(run, way, changed(key, value))
    message = str(refused.value)
    assert flag in message and "\n" not in message
    for one in (old, value):
        if not isinstance(one, dict):
            assert ("null" if one is None else str(one).rpartition(".")[2]) in message
    assert yaml.safe_load((run / "config.yaml").read_text()) == RUN


def test_the_same_settings_go_on_by_every_way(run: Path, capsys: Any):
    for way in ("file", "last in a folder", "last"):
        go_on(run, way, RUN)
    assert capsys.readouterr().out == ""
