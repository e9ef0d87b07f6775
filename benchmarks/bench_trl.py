"""TRL's worker of the benchmark: its GRPOTrainer with one callback that takes turns.

    python -m benchmarks.bench_trl SETTINGS.json

Started by benchmarks/bench.py. What is set differs from TRL's defaults for one of two reasons: it
is what rlsgd does (plain SGD, float32, one update from each rollout), or it is faster here (no
gradient checkpointing).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.bench_check import injected_rollout, write_gradients
from benchmarks.bench_worker import Turns, check_threads, text_hash, unreachable_token

GRPO = {
    "num_iterations": 1,
    "beta": 0.0,  # no KL
    "loss_type": "dapo",  # the mean over the tokens of all completions: rlsgd's token-mean
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "max_grad_norm": 1.0,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_dropout": True,
    "shuffle_dataset": False,  # rlsgd's order
    "learning_rate": 1.0e-4,
    "logging_steps": 1,  # rlsgd logs every iteration as well
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


class TakeTurns(TrainerCallback):
    """Runs a step when it is told to, and reports what it took.

    Args:
        turns: the socket and the clock.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.turns.wait()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.turns.clock.switch("optimizer")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.turns.clock.switch("other")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.turns.report()


class KeepGradients(TrainerCallback):
    """Writes the gradients before the step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        gradients = ((name, p.grad) for name, p in model.named_parameters())
        write_gradients(self.folder, "trl", gradients)


def reward(completions: list[Any], **_: Any) -> list[float]:
    """The benchmark's reward; in a chat a completion is a list of one message."""
    return [text_hash(c if isinstance(c, str) else c[0]["content"]) for c in completions]


def make_trainer(settings: dict[str, Any], model: Any) -> Any:
    """The trainer of a case.

    Args:
        settings: of the worker. An override `microbatches=N` splits the update: the fewer rows at
            once, the less memory.
        model: the policy.
    """
    own = {
        key: json.loads(value) for key, value in (o.split("=", 1) for o in settings["overrides"])
    }
    rows, microbatches = settings["prompts"] * settings["group"], own.pop("microbatches", 1)
    prompts = settings["question_list"]
    tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    if settings["chat"] and tokenizer.chat_template:
        prompts = [[{"role": "user", "content": question}] for question in prompts]
    config = GRPOConfig(
        output_dir=settings["folder"],
        num_generations=settings["group"],
        max_completion_length=settings["completion_tokens"],
        per_device_train_batch_size=rows // microbatches,
        gradient_accumulation_steps=microbatches,
        max_steps=settings["iterations"],
        seed=settings["seed"],
        generation_kwargs={"eos_token_id": [unreachable_token(settings["model"])]},
        **GRPO | own,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer: Any = GRPOTrainer(
        model,
        reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        optimizers=(optimizer, constant),
    )
    trainer.eos_token_ids = config.generation_kwargs["eos_token_id"]
    return trainer


def load(folder: str) -> Any:
    """The policy in float32; `disable_dropout` below does not reach attention's."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attention_dropout=0.0)


def take_turns(settings: dict[str, Any]) -> None:
    """Train, one step for each order."""
    turns = Turns(settings["descriptor"])
    check_threads(settings["threads"])
    turns.loading()
    trainer = make_trainer(settings, load(settings["model"]))
    clock, group = turns.clock, settings["group"]
    clock.wrap(trainer, "_generate", "sampling")
    clock.wrap(trainer, "_calculate_rewards", "scoring")
    clock.wrap(trainer, "compute_loss", "forward")
    clock.wrap(trainer.accelerator, "backward", "backward")
    clock.wrap(trainer, "_clip_grad_norm", "optimizer")
    generate, calculate = trainer._generate, trainer._calculate_rewards

    def noted(*args: Any, **kwargs: Any) -> Any:
        found = generate(*args, **kwargs)
        turns.rolled_out(found[0][::group], sum(map(len, found[1])))
        return found

    def scored(*args: Any, **kwargs: Any) -> Any:
        rewards = calculate(*args, **kwargs)
        turns.scored(rewards.sum(1).tolist(), group)
        return rewards

    trainer._generate, trainer._calculate_rewards = noted, scored
    trainer.add_callback(TakeTurns(turns))
    trainer.train()


def check(settings: dict[str, Any]) -> None:
    """One step on rlsgd's rollout; leaves loss and gradients."""
    folder = Path(settings["check"])
    settings = settings | {"overrides": [*settings["overrides"], "max_grad_norm=0"]}
    trainer = make_trainer(settings, load(settings["model"]))
    trainer._generate_single_turn = injected_rollout(folder)
    trainer.add_callback(KeepGradients(folder))
    compute, losses = trainer.compute_loss, []

    def kept(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        losses.append(float(loss.detach()))
        return loss

    trainer.compute_loss = kept
    trainer.train()
    (folder / "trl.json").write_text(json.dumps({"loss": sum(losses)}))


def run(path: Path) -> int:
    """One run of TRL; the exit status."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    (check if settings.get("check") else take_turns)(settings)
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
