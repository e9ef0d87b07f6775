"""The checks for a GPU, on a CPU: their commands run, and they can fail."""

import sys

import pytest
import torch

from benchmarks import gpu_checks


def test_memory_of_a_sharded_run_is_the_closed_form(tmp_path):
    model = gpu_checks.synthetic_model(tmp_path / "model", "tiny")
    found = gpu_checks.memory(model, tmp_path / "run", "AdamW", "cpu")
    assert found["passed"]
    # --- Hand calculation --- embedding 512 x 64; two layers of q 64 x 64, k and v 32 x 64, o 64 x
    # 64, three matrices of 128 x 64, norms of 64, 64, 32 and 32; a last norm of 64
    layer = 4096 + 2 * 2048 + 4096 + 3 * 8192 + 64 + 64 + 32 + 32
    weights = 512 * 64 + 2 * layer + 64
    assert found["closed form [GB]"] == 12 * weights / 1e9
    assert found["gradients [GB]"] == 4 * weights / 1e9


def test_storage_check_holds_and_sees_another_rounding(monkeypatch):
    assert gpu_checks.bf16_storage("cpu")["passed"]
    monkeypatch.setattr(gpu_checks, "keep_rounded", lambda optimizer, rounding: None)
    assert not gpu_checks.bf16_storage("cpu")["passed"]


def test_a_failed_check_does_not_hide_the_others():
    def broken():
        raise RuntimeError("no memory")

    results = gpu_checks.run({"a": broken, "b": lambda: {"passed": True}})
    assert results == {"a": {"passed": False, "error": "no memory"}, "b": {"passed": True}}


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_checks.py"])
    with pytest.raises(SystemExit):
        gpu_checks.main()
    assert "--accelerator gpu: torch sees no GPU" in capsys.readouterr().err
