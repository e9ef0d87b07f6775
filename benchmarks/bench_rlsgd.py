"""rlsgd's worker of the benchmark: `rlsgd fit` with one callback that takes turns.

    python -m benchmarks.bench_rlsgd SETTINGS.json

Started by benchmarks/bench.py. The module, the data, the loader, the loggers and the trainer are
those of every run of `rlsgd fit`; the callback waits at the start of each epoch, keeps the time,
and asks for the diagnostics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

import rlsgd.cli.main
from benchmarks.bench_check import write_gradients, write_rollout
from benchmarks.bench_worker import Turns, check_threads, unreachable_token

NEVER = 10**9  # epochs between two measurements of a callback
# What differs from the defaults of `rlsgd fit`. The module is GRPO: mean over tokens, no KL, one
# update from each rollout; the advantages' epsilon is another, TRL's, prompts are shared.
# Whether linear layers are computed by oneDNN, the case says.
MODEL = {
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0e-4}},
    "temperature": 1.0,
    "advantage_eps": 1.0e-4,
    "share_prompts": True,
}
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "gradient_clip_val": 1.0,  # as in the shipped configs; TRL's default as well
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
OBSERVERS = {"UpdateSparsity": "sparsity_every", "EffectiveRank": "rank_every"}


class TakeTurns(Callback):
    """Runs an epoch when it is told to, and reports what it took.

    Args:
        settings: path of the worker's settings.
    """

    def __init__(self, settings: str) -> None:
        self.settings = json.loads(Path(settings).read_text(encoding="utf-8"))
        self.check: str | None = self.settings.get("check")
        self.turns = None if self.check else Turns(self.settings["descriptor"])

    def setup(self, *_: Any, **__: Any) -> None:
        if self.turns:
            check_threads(self.settings["threads"])
            self.turns.loading()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        never = unreachable_token(self.settings["model"])
        # in the check completions are of many lengths: any token of these ends one
        pl_module.stop_token_ids = list(range(0, never, 8)) if self.check else [never]
        if self.turns is None:
            self.keep_rollout(pl_module)
            return
        clock = self.turns.clock
        clock.wrap(pl_module.sampler, "sample", "sampling")
        clock.wrap(pl_module.task_data, "score", "scoring")
        clock.wrap(trainer, "save_checkpoint", "checkpoint")
        self.note_rollouts(pl_module)
        for callback in self.observers(trainer):
            for hook in ("on_train_batch_start", "on_train_epoch_end"):
                clock.wrap(callback, hook, "diagnostics")

    def observers(self, trainer: Any) -> list[Any]:
        return [one for one in trainer.callbacks if type(one).__name__ in OBSERVERS]

    def note_rollouts(self, module: Any) -> None:
        rollout, turns, group = module.rollout, self.turns, self.settings["group"]
        assert turns is not None

        def noted(*args: Any, **kwargs: Any) -> Any:
            rollouts = rollout(*args, **kwargs)
            prompts = [prompt.token_ids for prompt in rollouts.prompts[::group]]
            turns.rolled_out(prompts, int(rollouts.completion_mask.sum()))
            turns.scored(rollouts.rewards.tolist(), group)
            return rollouts

        module.rollout = noted

    def keep_rollout(self, module: Any) -> None:
        rollout = module.rollout

        def kept(*args: Any, **kwargs: Any) -> Any:
            rollouts = rollout(*args, **kwargs)
            write_rollout(Path(str(self.check)), rollouts)
            return rollouts

        module.rollout = kept

    # ---- the phases of an iteration

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self.turns is None:
            return
        order = self.turns.wait()
        self.turns.clock.switch("other")
        wanted = order.get("diagnose", [])
        for callback in self.observers(trainer):
            callback.every_n_epochs = 1 if type(callback).__name__ in wanted else NEVER
        if "checkpoint" in wanted:  # between two iterations, as IterationCheckpoint does
            path = Path(self.settings["folder"]) / "checkpoint.ckpt"
            trainer.save_checkpoint(path)
            path.unlink()

    def switch(self, phase: str) -> None:
        if self.turns:
            self.turns.clock.switch(phase)

    def on_train_batch_start(self, *_: Any) -> None:
        self.switch("forward")

    def on_before_backward(self, *_: Any) -> None:
        self.switch("backward")

    def on_after_backward(self, *_: Any) -> None:
        self.switch("other")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.switch("optimizer")
        if self.check:
            gradients = ((name, p.grad) for name, p in pl_module.policy.named_parameters())
            write_gradients(Path(self.check), "rlsgd", gradients)

    def on_train_batch_end(self, *_: Any) -> None:
        self.switch("other")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.turns:
            self.turns.report()
        elif self.check:
            loss = {"loss": float(trainer.callback_metrics["loss"])}
            (Path(self.check) / "rlsgd.json").write_text(json.dumps(loss))


def config(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Of `rlsgd fit`."""
    case = settings
    turns = {"class_path": "benchmarks.bench_rlsgd.TakeTurns", "init_args": {"settings": str(path)}}
    observers = [
        {"class_path": name, "init_args": {"every_n_epochs": case[cadence]}}
        for name, cadence in OBSERVERS.items()
        if settings["diagnostics"]
    ]
    folder = {"save_dir": settings["folder"], "name": "", "version": ""}
    return {
        "seed_everything": settings["seed"],
        "model": {
            "class_path": "GRPO",
            "init_args": {
                "policy": settings["model"],
                "max_completion_tokens": case["completion_tokens"],
                "onednn": case["onednn"],
                **MODEL,
            },
        },
        "data": {
            "class_path": "PromptDataModule",
            "init_args": {
                "task": {
                    "class_path": "benchmarks.bench_cases.BenchTask",
                    "init_args": {"questions": case["questions"]},
                },
                "reward": {"class_path": "benchmarks.bench_cases.TextHash"},
                "chat_template": None if case["chat"] else False,  # none: if there is one
                "prompts_per_epoch": case["prompts"],
                "group_size": case["group"],
                "val_problems": 0,
            },
        },
        "trainer": {
            **TRAINER,
            **({"gradient_clip_val": None} if settings.get("check") else {}),
            "max_epochs": settings["iterations"],
            "logger": [
                {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": folder}
                for name in ("TensorBoardLogger", "CSVLogger")
            ],
            "callbacks": [turns, *observers],
        },
    }


def run(path: Path) -> int:
    """One run of `rlsgd fit`; the exit status."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    written = Path(settings["folder"]) / "config.yaml.json"
    written.write_text(json.dumps(config(settings, path)), encoding="utf-8")
    flags = [f"--{override}" for override in settings["overrides"]]
    return rlsgd.cli.main.main(["fit", "--config", str(written), *flags])


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
