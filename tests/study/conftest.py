from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsgd.study.command import main

# Stands in for `rlsgd fit`: obeys the overlay's `fake` keys and leaves a trace of every start.
FAKE_FIT = """
import os, pathlib, signal, sys, time
import yaml

assert sys.argv[1::2] == ["--config", "--config"]
base, overlay = (yaml.safe_load(pathlib.Path(path).read_text()) for path in sys.argv[2::2])
folder = pathlib.Path(overlay["trainer"]["default_root_dir"])
with open(base["trace"], "a") as trace:
    trace.write(f"{folder.parent.name} {folder.name} {os.environ['OMP_NUM_THREADS']}\\n")
fake = overlay.get("fake", {})
rate = overlay["model"]["init_args"]["optimizer"]["init_args"]["lr"]
gain = 0.1 * overlay["seed_everything"] if fake.get("end") != 3 else -0.1
(folder / "metrics.csv").write_text(
    "epoch,reward,step,val/accuracy,update/unchanged_bf16,distance,val/loss\\n"
    "0,,0,0.25,,,4\\n"
    "0,0.3,0,,,,\\n"
    f"0,,1,0.5,0.9,{rate},3\\n"
    "1,0.4,1,,,,\\n"
    f"1,,2,{0.5 + gain + rate},0.8,{3 * rate},{2 + rate}\\n"
)
print("about to end")
if fake.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if fake.get("sleep"):
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
sys.exit(fake.get("end", 0))
"""


@pytest.fixture
def fake_fit(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """The command of this file's fit, or of the test module's own."""
    script = tmp_path / "fake_fit.py"
    script.write_text(getattr(request.module, "FAKE_FIT", FAKE_FIT))
    return [sys.executable, str(script)]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.txt"


@pytest.fixture
def write_study(tmp_path: Path, trace: Path) -> Callable[..., Path]:
    """Writes a study file of two arms, with changes (None removes a key)."""

    def write(**changes: Any) -> Path:
        base = {"trace": str(trace), "trainer": {"max_epochs": 2, "devices": 1}}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
        study = {
            "name": "toy",
            "config": "base.yaml",
            "out": str(tmp_path / "out"),
            "seeds": [0, 1],
            "learning_rates_chosen_by": "a coin",
            "arms": [arm("adamw", optimizer="torch.optim.AdamW"), arm("sgd")],
        } | changes
        path = tmp_path / "study.yaml"
        path.write_text(
            yaml.safe_dump({k: v for k, v in study.items() if v is not None}, sort_keys=False)
        )
        return path

    return write


@pytest.fixture
def run_study(fake_fit: list[str]) -> Callable[..., int]:
    def run(path: Path, *arguments: str) -> int:
        return main([str(path), *arguments], command=fake_fit)

    return run


def arm(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "optimizer": "torch.optim.SGD", "learning_rate": 0.01} | changes
