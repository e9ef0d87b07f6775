"""What is refused before the base is validated: data of another kind, a disk that is too small."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint
from safetensors import SafetensorError

from rlsgd.algorithms import SFT, NextToken, PolicyModule, RLModule
from rlsgd.callbacks.base import run_folder
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.data import (
    PromptDataModule,
    SolutionDataModule,
    TextDataModule,
    TokenizedDataModule,
)
from rlsgd.planner.architecture import load_architecture
from rlsgd.planner.verdict import require_fit, setup_of

# what each kind of training is done on; a class of one's own counts as the one it derives from
TRAINED_ON = {RLModule: PromptDataModule, SFT: SolutionDataModule, NextToken: TextDataModule}


def check_data(
    model: PolicyModule, datamodule: TokenizedDataModule, *, trained: bool = False
) -> None:
    """Refuse data that the model cannot be trained on, or evaluated on.

    Raises:
        ValueError: names both, and the data that it takes.
    """
    wanted = next((takes for kind, takes in TRAINED_ON.items() if isinstance(model, kind)), None)
    kinds = (TextDataModule, SolutionDataModule, PromptDataModule)  # the last is the second's base
    given = next((kind for kind in kinds if isinstance(datamodule, kind)), None)
    if wanted is None or given is None:
        return  # somebody's own, derived from the base class alone
    # prompts and solutions are evaluated on the same problems
    fits = given is wanted if trained else (given is TextDataModule) == (wanted is TextDataModule)
    if not fits:
        raise ValueError(
            f"--data {type(datamodule).__name__} does not go with --model {type(model).__name__}, "
            f"which takes --data {wanted.__name__}"
        )


def check_disk_space(trainer: Any, model: PolicyModule) -> None:
    """Refuse to start where the first checkpoint would not fit.

    Raises:
        ValueError: free space is less than the weights and two optimizer moments take in float32.
    """
    if not any(isinstance(callback, Checkpoint) for callback in trainer.callbacks):
        return
    try:
        weights = LazyTensors.open(model.starting_folder)
    except (FileNotFoundError, SafetensorError):
        return  # no weights to measure: they will be random, or are damaged, which loading will say
    needed = 3 * 4 * sum(math.prod(weights.shape(name)) for name in weights.files)
    root = run_folder(trainer).absolute()
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"--trainer.default_root_dir {root}: {free / 2**20:,.0f} MiB are free and a checkpoint "
            f"may need {needed / 2**20:,.0f}; free space, choose another disk, or set "
            "--trainer.enable_checkpointing false"
        )


def device_bytes(trainer: Any) -> int | None:
    """Memory of the GPU that this process trains on; none on a CPU."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def check_memory(
    trainer: Any, model: PolicyModule, settings_of: Callable[[], dict[str, Any]]
) -> None:
    """Refuse a run that cannot fit its GPU, where the planner knows its model and its sampling.

    Args:
        trainer: of the run.
        model: that is trained.
        settings_of: gives all settings as plain data; not called where there is no GPU.

    Raises:
        ValueError: names the flag, the bytes, and what would fit.
    """
    gpu_bytes = device_bytes(trainer)
    if gpu_bytes is None:
        return
    settings = settings_of()
    if (setup := setup_of(settings, trainer.world_size)) is None:
        return
    try:
        architecture = load_architecture(model.policy_path)
    except ValueError:  # without heads of attention: nothing is known of its memory
        return
    require_fit(settings, architecture, setup, gpu_bytes)
