"""Fits that one process and two can make alike: completions that depend on the prompt alone."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import SGD, AdamW

from rlsgd.algorithms import GRPO, PPO
from rlsgd.core.distributed import derived_seed, full_parameters
from rlsgd.core.problems import Problem
from rlsgd.core.types import Sampled
from rlsgd.data import PromptDataModule
from rlsgd.data.tasks.base import Task
from rlsgd.models.strategy import FSDP2Strategy
from rlsgd.optimizers import FusedBackwardSGD
from rlsgd.rewards.base import Reward
from rlsgd.rollout.sampler import assemble, left_pad


class Sums(Task):
    """Prompts of different lengths, others in every epoch."""

    def train_problems(self, *, seed: int, epoch: int, count: int) -> list[Problem]:
        return [Problem(f"{10 ** (i % 3) + i + 7 * epoch}+{i}=", "0") for i in range(count)]

    def validation_problems(self, count: int) -> list[Problem]:
        return [Problem(f"{10**i}+{i}=", str(i)) for i in range(count)]

    def test_problems(self, count: int) -> list[Problem]:
        return self.validation_problems(count)


class EarlyLetters(Reward):
    """The share of letters before n."""

    isolated = False

    def score(self, completion: str, problem: Problem) -> float:
        return sum("a" <= c < "n" for c in completion) / max(1, len(completion))


class FixedSampler:
    """1 to 6 tokens that are a function of the prompt and the place in its group."""

    def sample(
        self, policy: Any, prompt_ids: list[list[int]], *, completions_per_prompt: int, **given: Any
    ) -> Sampled:
        pad, stop = given["pad_token_id"], given["stop_token_ids"]
        prompts, mask = left_pad(prompt_ids, pad, "cpu")
        completions = torch.full((len(prompt_ids) * completions_per_prompt, 6), stop[0])
        for row in range(len(completions)):
            ids, place = prompt_ids[row // completions_per_prompt], row % completions_per_prompt
            generator = torch.Generator().manual_seed(derived_seed(*ids, "completion", place))
            length = int(torch.randint(1, 7, (), generator=generator))
            completions[row, :length] = torch.randint(2, 64, (length,), generator=generator)
        prompts, mask = (t.repeat_interleave(completions_per_prompt, 0) for t in (prompts, mask))
        return assemble(prompts, mask, completions, stop)


def sgd(parameters: Any) -> SGD:
    return SGD(parameters, lr=2.0**-4)


def adamw(parameters: Any) -> AdamW:
    return AdamW(parameters, lr=2.0**-10, eps=1e-4)  # near 0 the sign of rounding would be a step


def fused(parameters: Any) -> FusedBackwardSGD:
    return FusedBackwardSGD(parameters, lr=2.0**-4, gradient_clip_val=0.5)


# name -> algorithm, model fixture, options of the module, options of the trainer
CASES: dict[str, tuple[Any, str, dict[str, Any], dict[str, Any]]] = {
    "grpo": (
        GRPO,
        "tiny_llama",
        {"kl_coef": 0.1, "inner_epochs": 2},
        {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2},
    ),
    "grpo_by_value": (
        GRPO,
        "tiny_llama_untied",
        {"optimizer": adamw, "activation_checkpointing": True},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ),
    "grpo_fused": (GRPO, "tiny_llama", {"optimizer": fused, "kl_coef": 0.1}, {}),
    "grpo_gpt2": (GRPO, "tiny_gpt2", {"entropy_coef": 0.1}, {"gradient_clip_val": 0.5}),
    "grpo_sharing": (
        GRPO,
        "tiny_qwen3",
        {"share_prompts": True, "kl_coef": 0.1, "inner_epochs": 2},
        {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2},
    ),
    "ppo": (
        PPO,
        "tiny_llama",
        {"value_optimizer": adamw, "kl_coef": 0.1, "inner_epochs": 2},
        {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2},
    ),
    "ppo_shared": (PPO, "tiny_llama_untied", {"shared_backbone": True}, {}),
    "ppo_checkpointed": (
        PPO,
        "tiny_qwen3",
        {"activation_checkpointing": True, "share_prompts": True},
        {},
    ),
}


class Recorder(Callback):
    """The metrics of every epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            self.note(trainer)

    def note(self, trainer: Trainer) -> None:
        self.epochs.append({name: float(v) for name, v in trainer.callback_metrics.items()})


def make_module(name: str, model: Path, **options: Any) -> Any:
    algorithm, _, own, _ = CASES[name]
    defaults = {"max_completion_tokens": 6, "sampler": FixedSampler(), "optimizer": sgd}
    return algorithm(policy=str(model), **{**defaults, **own, **options})


def make_data(model: Path, **options: Any) -> PromptDataModule:
    sizes = {"prompts_per_epoch": 4, "group_size": 4, "val_problems": 0, **options}
    return PromptDataModule(Sums(), str(model), reward=EarlyLetters(), **sizes)


def make_trainer(folder: Path, *, ranks: int = 1, **options: Any) -> Trainer:
    """A trainer of one process, or of the two that `on_two_ranks` has started."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    if ranks > 1:
        quiet |= {"devices": ranks, "strategy": options.pop("strategy", FSDP2Strategy())}
    defaults = {"max_epochs": 3, "enable_checkpointing": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**defaults, **quiet, **options})


def fit(
    name: str,
    model: Path,
    folder: Path,
    *,
    ranks: int = 1,
    ckpt_path: Path | None = None,
    module_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, Trainer, dict[str, Any]]:
    """Module, trainer and what came out: metrics of each epoch and whole weights at the end."""
    module = make_module(name, model, **module_options or {})
    recorder = Recorder()
    own = CASES[name][3]
    callbacks = [recorder, *options.pop("callbacks", [])]
    trainer = make_trainer(folder, ranks=ranks, callbacks=callbacks, **{**own, **options})
    trainer.fit(module, datamodule=make_data(model), ckpt_path=ckpt_path)
    return module, trainer, {"metrics": recorder.epochs, "weights": weights(module)}


def weights(module: Any) -> dict[str, torch.Tensor]:
    models = {"policy": module.policy, "value": getattr(module, "value", None)}
    return {
        f"{model}.{name}": value.clone()
        for model, part in models.items()
        if part is not None
        for name, value in full_parameters(part)
    }


def start_rank(rank: int, function: Callable[..., None], port: int, *arguments: Any) -> None:
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    function(rank, *arguments)


def on_two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in two processes that Lightning takes for its own; it gets its rank first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(start_rank, (function, port, *arguments), nprocs=2, daemon=True)
