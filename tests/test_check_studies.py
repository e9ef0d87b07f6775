"""`tools/check_studies.py`: the published studies are right, and what went wrong once is found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools.check_studies import check, named_optimizer

STUDY = Path("configs/studies/pretrain.yaml")
LL = "rlsgd.optimizers.SGDLL"
FIRST = {"momentum": 0.9, "head_row_clip": 1e-3, "update_rms_clip": 5e-4}


def test_every_published_study_ran_what_is_written():
    done = subprocess.run(
        [sys.executable, "tools/check_studies.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(list(Path('docs').glob('*/results.json')))} studies under docs" in done.stdout


@pytest.fixture
def docs(tmp_path, monkeypatch):
    """One study of two SGDLL arms, its record, its report and a page of findings."""
    monkeypatch.chdir(tmp_path)
    Path("configs/studies").mkdir(parents=True)
    base = {"model": {"class_path": "NextToken", "init_args": {"optimizer": ADAMW}}}
    Path("configs/base.yaml").write_text(yaml.safe_dump(base))
    write(FIRST)
    return tmp_path


ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}


def write(stated, *, text="momentum 0.9", **record):
    arm = {"name": "ll", "optimizer": LL, "learning_rate": 100.0, "optimizer_args": stated}
    study = {"name": "s", "config": "../base.yaml", "seeds": [1], "arms": [arm]}
    Path("configs/studies/s.yaml").write_text(yaml.safe_dump(study))
    ran = {"name": "ll", "seed": 1, "optimizer": LL, "learning_rate": 100.0, "precision": "fp32"}
    command = {"command": "rlsgd study configs/studies/s.yaml"}
    Path("docs/s").mkdir(parents=True, exist_ok=True)
    found = {"study": command, "arms": [ran | record]}
    Path("docs/s/results.json").write_text(json.dumps(found))
    Path("docs/s/report.md").write_text(f"| ll | {LL} | 100 | fp32 |\n")
    Path("docs/findings.md").write_text(
        f"# F\n\n## S\n\n`rlsgd study configs/studies/s.yaml`\n\n| SGDLL 100 ({text}) | 5.4 |\n"
    )


def lines():
    return check(Path("docs/s/results.json"))


def test_what_is_stated_ran(docs):
    assert lines() == []


def test_a_default_that_another_class_lent_is_found(docs):
    """The fault of the first pre-training study, as its files were."""
    write({"head_row_clip": 1e-3, "update_rms_clip": 5e-4})
    says, ran = lines()
    assert ran == f"s: ll seed 1: optimizer ran with momentum 0, {LL} has 0.9"
    assert says == "s: findings.md says 'SGDLL 100 (momentum 0.9)', and no arm ran so"


def test_what_was_read_back_decides(docs):
    """Not what was asked, and every group of it."""
    write({"head_row_clip": 1e-3}, optimizers=[{"class": LL, "arguments": [FIRST]}])
    assert lines() == []
    other = FIRST | {"lr": 4.0, "update_rms_clip": 1e-3}
    asked = {"optimizer_args": FIRST}
    write(FIRST, optimizers=[{"class": LL, "arguments": [FIRST, other]}], **asked)
    (line,) = lines()
    assert line.endswith("optimizer ran with update_rms_clip 0.001, the config says 0.0005")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"learning_rate": 10.0}, "ll seed 1: learning_rate 10.0 ran, the config says 100.0"),
        ({"precision": "bf16"}, "ll seed 1: precision bf16 ran, the config says fp32"),
        ({"optimizer": "torch.optim.SGD"}, f"ran, the config says {LL}"),
        ({"seed": 2}, "ll seed 2 is not in configs/studies/s.yaml"),
        ({"seed": 2}, "ll seed 1 did not run"),
        ({"text": "momentum 0.5"}, "findings.md says 'SGDLL 100 (momentum 0.5)'"),
    ],
)
def test_records_and_text_that_disagree_with_the_config_are_found(docs, changes, line):
    write(FIRST, **changes)
    assert any(line in found for found in lines())


def test_a_report_without_the_arm_is_found(docs):
    Path("docs/s/report.md").write_text("| ll | torch.optim.SGD | 100 |\n")
    assert lines() == [f"s: report.md has no row of ll with {LL} and 100"]


def test_an_empty_folder_is_no_success(tmp_path):
    tool = shutil.copy("tools/check_studies.py", tmp_path)
    done = subprocess.run([sys.executable, tool, "--docs", str(tmp_path)], check=False)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("SGD 3e-3, momentum 0.9", ("torch.optim.SGD", {"lr": 3e-3, "momentum": 0.9})),
        ("AdamW 3e-5, decay 0.01", ("torch.optim.AdamW", {"lr": 3e-5, "weight_decay": 0.01})),
        ("RL, AdamW 3e-5, 256 rows", ("torch.optim.AdamW", {"lr": 3e-5})),
        ("SGDLL 100 (head rows 1e-3)", (LL, {"lr": 100.0, "head_row_clip": 1e-3})),
        ("accuracy", None),
    ],
)
def test_what_a_tables_cell_names(cell, expected):
    assert named_optimizer(cell) == expected
