"""Training from Python is `rlsgd fit`: the same digits, the same folder, the same refusals."""

import csv
import importlib
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim import SGD

import rlsgd
from rlsgd import GRPO, SFT, PromptDataModule, ReasoningGym, UpdateSparsity, train
from rlsgd.cli.training import TrainingCLI
from rlsgd.core.command import UsageError
from rlsgd.core.made_with import as_config

EXAMPLE = Path("examples/train.py").resolve()
SUMS = {
    **{"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2, "operators": ["+"]},
    **{"allow_parentheses": False, "allow_negation": False},
}
CALLBACKS = [{"class_path": "rlsgd.callbacks.UpdateSparsity"}]
COMMAND = [
    *("fit", "--config", "grpo_embedded", "--data.prompts_per_epoch=4"),
    *(
        "--data.val_problems=16",
        "--data.val_batch_size=64",
        "--model.share_prompts=false",
        "--trainer.max_epochs=3",
    ),
    *("--trainer.check_val_every_n_epoch=1", "--trainer.enable_checkpointing=true"),
    f"--trainer.callbacks={json.dumps(CALLBACKS)}",
]


def objects(seed: int = 0, **arguments):
    task = ReasoningGym("basic_arithmetic", SUMS, held_out_fraction=0.15)
    given = {"optimizer": partial(SGD, lr=3e-3), "max_completion_tokens": 6} | arguments
    model = GRPO(policy="embedded", share_prompts=False, seed=seed, **given)
    data = PromptDataModule(
        task, "embedded", prompts_per_epoch=4, val_problems=16, val_batch_size=64, seed=seed
    )
    return model, data


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if not name.startswith("time/")}
            for row in csv.DictReader(file)
        ]


def settings(folder: Path) -> dict:
    """Without what says where it was written."""
    found = yaml.safe_load((folder / "config.yaml").read_text())
    for key in ("logger", "default_root_dir"):
        found["trainer"].pop(key)
    return found


def test_weights_metrics_and_config_equal_those_of_the_command(tmp_path, capsys):
    """In two parts, the second going on from a checkpoint of the first."""
    cli = TrainingCLI.run([*COMMAND, f"--trainer.default_root_dir={tmp_path / 'command'}"])
    said = {"command": capsys.readouterr().out}
    place = {"default_root_dir": str(tmp_path / "python"), "gradient_clip_val": 1.0}
    place |= {"accelerator": "cpu", "enable_model_summary": False, "callbacks": CALLBACKS}
    place |= {"check_val_every_n_epoch": 1, "enable_checkpointing": True}
    train(*objects(), max_epochs=2, **place)
    capsys.readouterr()
    model, data = objects()
    run = train(model, data, max_epochs=3, ckpt_path="last", **place)
    expected = dict(cli.model.policy.named_parameters())
    assert all(torch.equal(w, expected[name]) for name, w in model.policy.named_parameters())
    assert run.folder == tmp_path / "python" and run.trainer.current_epoch == 3
    assert rows(run.folder) == rows(tmp_path / "command")
    written, own = settings(run.folder), settings(tmp_path / "command")
    assert written.pop("ckpt_path").endswith(".ckpt") and own.pop("ckpt_path") is None
    assert written == own
    assert own["model"]["class_path"] == "rlsgd.algorithms.GRPO", "other runs' configs have it so"
    last = [line for line in said["command"].splitlines() if "unchanged weights" in line]
    assert last and last[0] in capsys.readouterr().out
    share = float(re.search(r"([\d.]+)% rounded", last[0])[1])
    assert round(100 * run.metrics["update/unchanged_bf16"], 2) == share


def test_the_example_is_short_and_runs_and_is_the_one_in_the_docs(tmp_path):
    code = EXAMPLE.read_text().partition('"""\n\n')[2]
    assert len([line for line in code.splitlines() if line]) <= 15
    assert f"```python\n{code}```" in Path("docs/python.md").read_text()
    done = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(r"run folder: runs/fit/\S+; base accuracy", done.stdout)
    [folder] = (tmp_path / "runs/fit").iterdir()
    assert done.stdout.splitlines()[-1].endswith(f"all of it in {folder.relative_to(tmp_path)}")
    assert str(EXAMPLE) in (folder / "provenance.json").read_text()


def test_what_was_given_is_what_trains(tmp_path):
    sparsity = UpdateSparsity(every_n_epochs=2)
    model, data = objects()
    run = train(model, data, max_epochs=1, callbacks=[sparsity], default_root_dir=str(tmp_path))
    assert sparsity in run.trainer.callbacks and run.trainer.lightning_module is model
    assert settings(tmp_path)["trainer"]["callbacks"][0]["init_args"]["every_n_epochs"] == 2


@pytest.mark.parametrize(
    ("make", "trainer", "message"),
    [
        (lambda: objects(optimizer=lambda p: SGD(p, 0.1)), {}, r"^--model\.optimizer .*partial"),
        (lambda: objects(optimizer=partial(SGD, lr=-1)), {}, r"^--model\.optimizer SGD: Invalid"),
        (lambda: (objects()[0], objects(seed=1)[1]), {}, r"^--data\.seed 1: must be the model's"),
        (lambda: (SFT(), objects()[1]), {}, r"^--data PromptDataModule does not go with .*SFT"),
        (objects, {"max_epochs": -5}, r"^--trainer\.max_epochs -5: must be at least 0"),
        (objects, {"max_epoch": 5}, r"^--trainer\.max_epoch: .* did you mean .*max_epochs"),
        (objects, {"callbacks": [EarlyStopping("x")]}, r"^--trainer\.callbacks .*'class_path'"),
    ],
    ids=["lambda", "rate", "seed", "kind", "value", "name", "callback"],
)
def test_what_the_command_refuses_is_refused_and_leaves_nothing(
    make, trainer, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("rlsgd.rollout.sampler.HFSampler.sample", None)  # nothing may be sampled
    with pytest.raises((UsageError, ValueError), match=message):
        train(*make(), default_root_dir=str(tmp_path / "run"), **{"max_epochs": 1} | trainer)
    assert not (tmp_path / "run").exists()


def test_arguments_are_remembered_by_name_and_through_classes_above():
    task = ReasoningGym("basic_arithmetic", SUMS)
    assert task.made_with == {"name": "basic_arithmetic", "config": SUMS}
    model = GRPO(0.1, policy="embedded", optimizer=SGD, kl_coef=0.5)
    written = as_config(model, "--model")
    assert written == {
        "class_path": "rlsgd.algorithms.GRPO",
        "init_args": {
            "clip_low": 0.1,
            "policy": "embedded",
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {}},
            "kl_coef": 0.5,
        },
    }


def test_every_exported_class_is_a_name_of_rlsgd_and_nothing_is_imported_before():
    for room in rlsgd.ROOMS:
        module = importlib.import_module(f"rlsgd.{room}")
        assert all(
            getattr(rlsgd, name) is getattr(module, name)
            for name in module.__all__
            if name[0].isupper()
        )
    with pytest.raises(AttributeError, match="'rlsgd' has no attribute 'GPRO'"):
        rlsgd.GPRO  # noqa: B018
    code = "import sys, rlsgd; sys.exit(bool({'torch', 'lightning', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
