"""`rlsgd lineage`: the base that a checkpoint was tuned from comes first, with shares by hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlsgd.cli.main import main


def ranked(capsys: pytest.CaptureFixture[str], *paths: Path) -> list[dict]:
    assert main(["lineage", *map(str, paths), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["bases"]


def test_shares_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of 10 weights: 6 of the parent's are equal in bf16, and of another shape's 4 at most."""
    models = {
        # 1 + 2^-12 rounds to 1; 2 and 3 moved by 1; 8 weights of w and 2 of v
        "tuned": {"w": torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]), "v": torch.tensor([9.0, 9])},
        "parent": {
            "w": torch.tensor([1 + 2**-12, 1, 2, 4, 5, 6, 7, 8]),
            "v": torch.tensor([8.0, 8]),
        },
        "other": {"w": torch.tensor([4.0, 4, 4, 4, 4, 4, 4, 4]), "v": torch.zeros(3)},
        "stranger": {"u": torch.ones(4)},
    }
    for name, tensors in models.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    tuned, parent, other, stranger = (tmp_path / f"{name}.safetensors" for name in models)
    found = ranked(capsys, tuned, stranger, other, parent)
    assert [one["base"] for one in found] == [str(parent), str(other), str(stranger)]
    assert [one["equal_bf16"] for one in found] == [0.6, 0.1, 0.0]
    assert [one["compared"] for one in found] == [1.0, 0.8, 0.0]
    initial = (1 + 2**-12) ** 2 + 1 + 4 + 16 + 25 + 36 + 49 + 64 + 128
    expected = ((2**-24 + 1 + 1 + 1 + 1) / initial) ** 0.5
    assert found[0]["relative_displacement"] == pytest.approx(expected, rel=1e-12)
    # (3, 2, 1, 0, 1, 2, 3, 4) from eight fours
    assert found[1]["relative_displacement"] == pytest.approx((44 / 128) ** 0.5, rel=1e-12)
    assert found[2]["relative_displacement"] is None
    assert main(["lineage", str(tuned), str(parent)]) == 0
    assert "60" in capsys.readouterr().out


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_file({"steps": torch.arange(3)}, tmp_path / "no.safetensors")
    for arguments, message in (
        (["no/such/folder", "embedded"], "CHECKPOINT no/such/folder: no such folder"),
        (["embedded", "no/such/folder"], "BASE no/such/folder: no such folder"),
        ([str(tmp_path / "no.safetensors"), "embedded"], "CHECKPOINT: holds no weights"),
    ):
        assert main(["lineage", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"rlsgd lineage: error: {message}")
