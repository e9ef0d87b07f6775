"""`rlsgd push` without a network: what it would send, what it refuses, what it asks of the hub."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from rlsgd.cli.main import main


@pytest.fixture
def export(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model folder with files that must not be sent beside it."""
    folder = shutil.copytree(tiny_llama, tmp_path / "hf")
    (folder / "README.md").write_text("# card")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "stale.safetensors").write_bytes(b"of no index")
    (folder / ".env").write_text("HF_TOKEN=secret")
    return folder


def test_a_dry_run_lists_the_model_and_nothing_else(export: Path, capsys):
    assert main(["push", str(export), "owner/name", "--dry_run"]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    sizes = {row.split()[1]: int(row.split()[0].replace(",", "")) for row in rows}
    kept = {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert kept <= sizes.keys()
    assert not {"modeling_own.py", "stale.safetensors", ".env"} & sizes.keys()
    assert sizes == {name: (export / name).stat().st_size for name in sizes}
    total = f"{len(sizes)} files, {sum(sizes.values()):,} bytes"
    assert last == f"would upload {total}, to https://huggingface.co/owner/name"


def test_the_hub_is_asked_for_exactly_those_files(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    calls: list[tuple[str, tuple, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, *args: Any, **settings: Any) -> None:
            calls.append(("create", args, settings))

        def upload_folder(self, **settings: Any) -> None:
            calls.append(("upload", (), settings))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert main(["push", str(export), "owner/name", "--private"]) == 0
    listed = [row.split()[1] for row in capsys.readouterr().out.splitlines()[:-1]]
    (_, created, settings), (_, _, upload) = calls
    assert created == ("owner/name",) and settings == {"private": True, "exist_ok": True}
    assert upload["repo_id"] == "owner/name" and upload["folder_path"] == str(export)
    assert upload["allow_patterns"] == listed


@pytest.mark.parametrize(
    ("folder", "name", "message"),
    [
        ("no/such", "owner/name", "FOLDER no/such: has no config.json"),
        ("hf", "name", "NAME name: write owner/name"),
        ("hf", "owner/na me", "NAME owner/na me: "),
        ("empty", "owner/name", "holds neither"),
    ],
)
def test_what_cannot_be_pushed(folder: str, name: str, message: str, export: Path, capsys):
    (export.parent / "empty").mkdir()
    (export.parent / "empty" / "config.json").write_text("{}")
    path = export.parent / folder if folder != "no/such" else Path(folder)
    assert main(["push", str(path), name, "--dry_run"]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.startswith("rlsgd push: error: ") and not shown.out
