"""`rlsgd doctor` says what it found by trying."""

import os
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import rlsgd
from rlsgd.cli.main import main
from rlsgd.rewards.sandbox.base import Bubblewrap
from rlsgd.rewards.sandbox.session import SandboxError


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    pairs = dict(line.split(": ", 1) for line in lines)
    assert len(pairs) == len(lines)
    return pairs


def test_what_is_there_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 4, 5 * 2**30))
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path / "none" / "yet"))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    lines = found(capsys)
    assert f"rlsgd {rlsgd.__version__}, torch {version('torch')}" in lines["versions"]
    assert f" in torch {torch.__version__}," in lines["linear algebra"]  # with its build
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores usable"
    assert cores in lines["machine"]
    assert "OMP_NUM_THREADS 7" in lines["linear algebra"]
    assert f"{torch.get_num_threads()} threads" in lines["linear algebra"]
    assert lines["disk, here"] == f"5.0 GiB free ({Path.cwd()})"
    assert lines["disk, cache"] == f"5.0 GiB free ({tmp_path / 'none' / 'yet'})"


def test_a_wall_works_or_says_why_not(capsys, monkeypatch):
    def fallen(self) -> None:
        if isinstance(self, Bubblewrap):
            raise SandboxError("no\nnamespaces")

    monkeypatch.setattr("rlsgd.rewards.sandbox.base.Sandbox.check", fallen)
    lines = found(capsys)
    assert lines["wall Bubblewrap"] == "does not work: no namespaces"
    assert lines["wall Landlock"] == "works"


def test_a_missing_extra_is_named_with_its_installation(capsys, monkeypatch):
    monkeypatch.setattr("rlsgd.cli.doctor.find_spec", lambda name: name == "gguf" or None)
    lines = found(capsys)
    assert lines["extra gguf"] == "installed"
    assert lines["extra vllm"] == "not installed: pip install 'rlsgd[vllm]'"
