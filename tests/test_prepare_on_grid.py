"""`tools/prepare_on_grid.py`: the same model on the bfloat16 grid, and an error that names it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlsgd.models.loading import EMBEDDED, load_policy, load_tokenizer, resolve_model

TOOL = "tools/prepare_on_grid.py"


def test_every_weight_is_the_nearest_number_and_nothing_else_differs(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=f"Run: python {TOOL}"):
        resolve_model("embedded-bf16")
    done = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, check=True)
    assert "--model.policy embedded-bf16 (99.9986% of its weights were moved)" in done.stdout
    before, after = (
        dict(load_policy(name).named_parameters()) for name in ("embedded", "embedded-bf16")
    )
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name].bfloat16().float()), name
    stored = load_file(Path(resolve_model("embedded-bf16")) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert stored.keys() == load_file(EMBEDDED / "model.safetensors").keys()
    prompt = "12+34="
    ours, theirs = (
        load_tokenizer(name)(prompt)["input_ids"] for name in ("embedded-bf16", "embedded")
    )
    assert ours == theirs
