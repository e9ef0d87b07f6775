"""Small runs that leave every kind of file, and what they leave, to be compared with another's."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsgd.core.problems import Problem
from rlsgd.data.tasks.base import Task
from rlsgd.rewards.base import Reward

OPTIMIZERS = {
    "SGD": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
    "plain SGD": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
    "AdamW": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3}},
}
MEASURED = ("seconds", "peak_")  # in the names of metrics that no two runs have alike
HYPERPARAMETERS = ("_hparams_", "hp_metric")  # tags of what loggers are told at a start


class Sums(Task):
    """Every epoch asks other questions."""

    def train_problems(self, *, seed: int, epoch: int, count: int) -> list[Problem]:
        first = 10 + 7 * ((seed + epoch) % 11)
        return [Problem(f"{first + i}+{i}=", str(first + 2 * i)) for i in range(count)]

    def validation_problems(self, count: int) -> list[Problem]:
        return self.train_problems(seed=5, epoch=3, count=count)

    def test_problems(self, count: int) -> list[Problem]:
        return self.validation_problems(count)


class EvenCharacters(Reward):
    """The share of characters with an even number: varied, whatever a model writes."""

    isolated = False

    def score(self, completion: str, problem: Problem) -> float:
        return sum(ord(c) % 2 == 0 for c in completion) / max(1, len(completion))


CALLBACKS = {
    "UpdateSparsity": {"every_n_epochs": 2, "heatmap_every_n": 2},
    "Memory": {},
    "CompletionLog": {},
    "DeltaCheckpoint": {"chain": True},
    "HFExport": {},
}


def config(
    policy: str,
    algorithm: str,
    optimizer: str,
    *,
    ranks: int = 1,
    epochs: int = 5,
    callbacks: dict[str, Any] = CALLBACKS,
) -> dict[str, Any]:
    """Settings of a run that leaves its files in the folder where it is started.

    Args:
        policy: the model.
        algorithm: `GRPO`, which has a reference here, or `PPO`, which has a critic.
        optimizer: a key of `OPTIMIZERS`; of policy and critic.
        ranks: processes; two share the model (FSDP2).
        epochs: iterations, of two optimizer steps each.
        callbacks: their arguments by their names.
    """
    own = {"GRPO": {"kl_coef": 0.1}, "PPO": {"critic_warmup_epochs": 1}}
    decay = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.7}}
    model = {
        "policy": policy,
        "optimizer": OPTIMIZERS[optimizer],
        "lr_scheduler": decay,
        "minibatches": 2,
        "max_completion_tokens": 6,
    }
    sharded = {"devices": ranks, "strategy": {"class_path": "rlsgd.models.strategy.FSDP2Strategy"}}
    folder = {"save_dir": "run", "name": "", "version": ""}
    return {
        "seed_everything": 1,
        "model": {"class_path": algorithm, "init_args": {**model, **own[algorithm]}},
        "data": {
            "class_path": "PromptDataModule",
            "init_args": {
                "task": {"class_path": "benchmarks.small_runs.Sums"},
                "reward": {"class_path": "benchmarks.small_runs.EvenCharacters"},
                "prompts_per_epoch": 4,
                "group_size": 4,
                "val_problems": 4,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            **(sharded if ranks > 1 else {"devices": 1}),
            "max_epochs": epochs,
            "gradient_clip_val": 1.0,
            "check_val_every_n_epoch": 2,
            "enable_checkpointing": True,
            "enable_model_summary": False,
            "logger": [
                {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": folder}
                for name in ("TensorBoardLogger", "CSVLogger")
            ],
            "callbacks": [
                {"class_path": name, "init_args": arguments}
                for name, arguments in callbacks.items()
            ],
        },
    }


def write_config(folder: Path, settings: dict[str, Any]) -> list[str]:
    """The command for a run in a new folder."""
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return ["fit", "--config", "settings.yaml"]


# ---- what a run has left


def contents(folder: Path) -> dict[str, Any]:
    """What is to be the same in two runs, by what it is.

    Args:
        folder: where the run was started.
    """
    run = folder / "run"
    found: dict[str, Any] = {f"checkpoint: {k}": v for k, v in checkpoint(run).items()}
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        found["metrics.csv"] = [
            {k: v for k, v in row.items() if v and not any(word in k for word in MEASURED)}
            for row in csv.DictReader(file)
        ]
    for path in sorted(run.glob("*.jsonl")):
        found[path.name] = path.read_text(encoding="utf-8").splitlines()
    for path in sorted([*run.glob("deltas/*"), *run.glob("hf/*")]):
        if path.name == "README.md":  # the model's card tells of times, and how the run was started
            continue
        found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found | {f"TensorBoard: {k}": v for k, v in events(run).items()}


def checkpoint(run: Path) -> dict[str, Any]:
    """The last checkpoint's state, each tensor as its digest."""
    from rlsgd.resume.files import checkpoints_in, read_checkpoint

    path = checkpoints_in(run / "checkpoints")[0]
    state = read_checkpoint(path)
    tensors = {**state["state_dict"]} if "state_dict" in state else shards(path)
    for callback in state["callbacks"].values():
        callback.pop("starting_weights", None)  # a path
    loop = state["loops"]["fit_loop"]
    progress = {key: loop[key] for key in ("epoch_progress", "epoch_loop.state_dict")}
    own = ("epoch", "global_step", "optimizer_states", "lr_schedulers", "callbacks")
    return {
        "name": path.name,
        **{name: digest(tensor) for name, tensor in tensors.items()},
        **{key: digests(state[key]) for key in own},
        "progress": progress,
    }


def shards(folder: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint in shards, whole."""
    import torch
    import torch.distributed.checkpoint as dcp

    from rlsgd.models.shard_index import read_index

    stored: dict[str, Any] = read_index(folder).state_dict_metadata
    tensors = {n: torch.empty(m.size, dtype=m.properties.dtype) for n, m in stored.items()}
    dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    return tensors


def events(run: Path) -> dict[str, list[tuple[int, str]]]:
    """By tag, step and digest of everything that TensorBoard would show, file after file.

    Hyperparameters are written whenever a run starts or goes on: what is equal counts once.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found: dict[str, list[tuple[int, str]]] = {}
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if not any(word in value.tag for word in MEASURED):
                    if value.tag.startswith(HYPERPARAMETERS):  # a mapping has no order in its bytes
                        stored = value.metadata.plugin_data
                        inner = HParamsPluginData.FromString(stored.content)
                        stored.content = inner.SerializeToString(deterministic=True)
                    data = hashlib.sha256(value.SerializeToString(deterministic=True))
                    entries = found.setdefault(value.tag, [])
                    entry = event.step, data.hexdigest()
                    if not value.tag.startswith(HYPERPARAMETERS) or entry not in entries:
                        entries.append(entry)
    return found


def digest(tensor: Any) -> str:
    """Of dtype, shape and every bit."""
    import torch

    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    text = f"{tensor.dtype} {tuple(tensor.shape)}"
    return hashlib.sha256(text.encode() + data).hexdigest()


def digests(value: Any) -> Any:
    """The same structure with digests in place of tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        return str(value.shape) if value.is_meta else digest(value)
    if isinstance(value, dict):
        return {key: digests(item) for key, item in value.items()}
    return [digests(item) for item in value] if isinstance(value, list | tuple) else value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    """What is not the same, in words."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            yield f"{name} is {'not there' if name in expected else 'too much'}"
        elif found[name] != expected[name]:
            yield f"{name} differs"
