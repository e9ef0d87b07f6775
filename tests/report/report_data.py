"""Folders like those that `rlsgd study` and `rlsgd fit` leave, with numbers made by hand."""

import json
from pathlib import Path
from typing import Any

import yaml

from rlsgd.study.arms import Arm, Study
from rlsgd.study.expansion import expand_runs
from rlsgd.study.processes import Outcome
from rlsgd.study.results import run_record, study_record

COMMAND = "rlsgd study configs/studies/toy.yaml"
TENSORS = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight")
# final accuracies by arm and seed: differences of 0.02, 0.03 and 0.04
ACCURACY = {"adamw": (0.50, 0.60, 0.70), "sgd": (0.52, 0.63, 0.74)}
UNCHANGED = {"adamw": 0.25, "sgd": 0.75}


def fit_config(seed: int, optimizer: str = "torch.optim.SGD", **changes: Any) -> dict[str, Any]:
    """The parts of a run's config.yaml that are read; `changes` replace whole top-level keys."""
    config = {
        "seed_everything": seed,
        "trainer": {
            "default_root_dir": "/home/somebody/runs/x",
            "logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger"}],
            "precision": "32-true",
            "max_epochs": 2,
            "max_steps": -1,
        },
        "model": {
            "class_path": "rlsgd.algorithms.GRPO",
            "init_args": {
                "policy": "embedded",
                "weight_rounding": None,
                "optimizer": {"class_path": optimizer, "init_args": {"lr": 0.01}},
            },
        },
        "data": {"class_path": "rlsgd.data.PromptDataModule", "init_args": {"group_size": 2}},
    }
    return config | changes


def write_run(
    folder: Path,
    config: dict[str, Any],
    *,
    accuracy: float = 0.5,
    unchanged: float = 0.5,
    completions: list[dict[str, Any]] | None = None,
    epochs: int = 2,
) -> Path:
    """A run of two epochs: metrics, sparsity by tensor, configuration, completions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["0,,0,0.25,,", f"0,0.3,0,,,\n0,,1,,{unchanged},1024"]
    rows += [f"1,0.4,1,,,\n1,,2,{accuracy},{unchanged},1024"][: epochs - 1]
    header = "epoch,reward,step,val/accuracy,update/unchanged_bf16,memory/parameter_bytes"
    (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    shares = {
        TENSORS[0]: {"unchanged_bf16": unchanged},
        TENSORS[1]: {"unchanged_bf16": 1.0},
    }
    lines = [{"epoch": 0, "tensors": {}}, {"epoch": 1, "tensors": shares}]
    (folder / "update_sparsity.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if completions is not None:
        text = "".join(json.dumps(record) + "\n" for record in completions)
        (folder / "completions.jsonl").write_text(text)
    return folder


def completion(text: str, reward: float = 1.0, epoch: int = 1, **changes: Any) -> dict[str, Any]:
    record = {"epoch": epoch, "global_step": epoch, "prompt": "2 + 2?", "completion": text}
    return record | {"answer": "4", "reward": reward, "truncated": False} | changes


def write_study(folder: Path, name: str = "toy", **study_changes: Any) -> Path:
    """A study of two arms and three seeds, whose first seed has completions."""
    folder.mkdir(parents=True)
    base = folder / "base.yaml"
    base.write_text(yaml.safe_dump({"trainer": {"max_epochs": 2}}))
    arms = [
        Arm(name="adamw", optimizer="torch.optim.AdamW", learning_rate=1e-5),
        Arm(name="sgd", optimizer="torch.optim.SGD", learning_rate=1e-3),
    ]
    settings = {"question": "Does it matter?", "learning_rates_chosen_by": "a coin"}
    settings |= {"seeds": [0, 1, 2], "arms": arms, "config": str(base), "out": str(folder)}
    study = Study(name=name, **(settings | study_changes))
    records = []
    for run in expand_runs(study):
        finals = ACCURACY.get(run.arm.name, ACCURACY["sgd"])
        answers = ["4", "5"] if run.arm.name == "adamw" else ["4", "4"]
        write_run(
            run.folder,
            fit_config(run.seed, run.arm.optimizer),
            accuracy=finals[run.seed],
            unchanged=UNCHANGED.get(run.arm.name, 0.5),
            completions=[completion(t, float(t == "4")) for t in answers] if not run.seed else None,
        )
        records.append(
            run_record(
                study, run, Outcome(status="finished", exit_status=0, seconds=12.0, fingerprint="f")
            )
        )
    results = study_record(study, COMMAND, records)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def edit_results(folder: Path, change) -> None:
    """Rewrite a study's results.json after `change` altered the parsed mapping in place."""
    path = folder / "results.json"
    results = json.loads(path.read_text())
    change(results)
    path.write_text(json.dumps(results))
