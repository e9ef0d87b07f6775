"""What may change between a run and its resumption, setting by setting."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from rlsgd.resume.changes import check_changes

OPTIMIZER = "model.init_args.optimizer"
RUN: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 6,
        "precision": None,
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "gradient_clip_val": 1.0,
        "gradient_clip_algorithm": None,
        "accumulate_grad_batches": 1,
        "callbacks": [{"class_path": "rlsgd.callbacks.UpdateSparsity"}],
        "logger": False,
        "default_root_dir": "runs/one",
        "check_val_every_n_epoch": 1,
        "max_time": None,
    },
    "model": {
        "class_path": "rlsgd.algorithms.GRPO",
        "init_args": {
            "policy": "embedded",
            "optimizer": {
                "class_path": "torch.optim.SGD",
                "init_args": {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
            },
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.StepLR",
                "init_args": {"step_size": 3, "gamma": 0.1},
            },
            "kl_coef": 0.0,
            "temperature": 1.0,
            "minibatches": 1,
            "inner_epochs": 1,
            "max_completion_tokens": 16,
            "weight_rounding": None,
            "eval_samples": 0,
        },
    },
    "data": {
        "class_path": "rlsgd.data.PromptDataModule",
        "init_args": {
            "task": {
                "class_path": "rlsgd.data.ReasoningGym",
                "init_args": {"name": "chain_sum", "config": {"max_terms": 2}},
            },
            "reward": None,
            "group_size": 8,
            "prompts_per_epoch": 32,
        },
    },
}
REFUSED = {
    "seed_everything": 1,
    "trainer.precision": "bf16-mixed",
    "trainer.devices": 2,
    "trainer.num_nodes": 2,
    "trainer.strategy": "ddp",
    "trainer.gradient_clip_val": 2.0,
    "trainer.gradient_clip_algorithm": "value",
    "trainer.accumulate_grad_batches": 2,
    "model.class_path": "rlsgd.algorithms.RLOO",
    "model.init_args.policy": "qwen3",
    f"{OPTIMIZER}.class_path": "rlsgd.optimizers.SignSGD",
    f"{OPTIMIZER}.init_args.lr": 0.2,
    f"{OPTIMIZER}.init_args.momentum": 0.9,
    f"{OPTIMIZER}.init_args.weight_decay": 0.01,
    "model.init_args.lr_scheduler.init_args.gamma": 0.5,
    "model.init_args.lr_scheduler.class_path": "torch.optim.lr_scheduler.ConstantLR",
    "model.init_args.kl_coef": 0.1,
    "model.init_args.temperature": 0.7,
    "model.init_args.minibatches": 2,
    "model.init_args.inner_epochs": 2,
    "model.init_args.max_completion_tokens": 32,
    "model.init_args.weight_rounding": "nearest",
    "data.init_args.task.init_args.name": "leg_counting",
    "data.init_args.task.init_args.config": {"max_terms": 2, "max_digits": 3},
    "data.init_args.task.class_path": "rlsgd.data.DatasetTask",
    "data.init_args.reward": {"class_path": "rlsgd.rewards.MathVerify"},
    "data.init_args.group_size": 4,
    "data.init_args.prompts_per_epoch": 16,
    "trainer.max_epochs": 2,  # fewer than are done
}
TAKES_EFFECT = {
    "trainer.max_epochs": 9,
    "trainer.max_time": "00:01:00:00",
    "trainer.callbacks": [{"class_path": "rlsgd.callbacks.Memory"}],
    "trainer.check_val_every_n_epoch": 2,
    "model.init_args.eval_samples": 4,
}
PLACES = {"trainer.default_root_dir": "runs/two", "trainer.logger": True}


def changed(key: str, value: Any) -> dict[str, Any]:
    now = deepcopy(RUN)
    inner = now
    *parents, last = key.split(".")
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return now


@pytest.mark.parametrize("key", REFUSED)
def test_what_cannot_change_is_refused_with_both_values(key: str):
    with pytest.raises(ValueError) as refused:
        check_changes("x.ckpt", RUN, changed(key, REFUSED[key]), done=3)
    message = str(refused.value)
    flag = "--" + key.replace(".init_args", "").removesuffix(".class_path")
    assert message.startswith(flag), message
    old: Any = RUN
    for part in key.split("."):
        old = old[part]
    for value in (old, REFUSED[key]):
        if not isinstance(value, dict):
            assert ("null" if value is None else str(value).rpartition(".")[2]) in message
    assert "\n" not in message


@pytest.mark.parametrize("key", TAKES_EFFECT)
def test_what_takes_effect_is_said(key: str):
    (line,) = check_changes("x.ckpt", RUN, changed(key, TAKES_EFFECT[key]), done=3)
    assert line.startswith("--" + key.replace(".init_args", ""))


@pytest.mark.parametrize("key", PLACES)
def test_a_place_is_nothing_to_say(key: str):
    assert check_changes("x.ckpt", RUN, changed(key, PLACES[key]), done=3) == []


def test_the_same_settings_change_nothing():
    assert check_changes("x.ckpt", RUN, deepcopy(RUN), done=3) == []


def test_an_argument_that_the_run_did_not_know_is_no_change():
    assert check_changes("x.ckpt", RUN, changed("model.init_args.new", False), done=3) == []


def test_warmup_cosine_goes_by_the_numbers_given():
    spec = {"class_path": "rlsgd.optimizers.schedulers.WarmupCosine"}
    before, now = (
        changed("model.init_args.lr_scheduler", spec | {"init_args": {"total_steps": steps}})
        for steps in (6, 9)
    )
    assert check_changes("x.ckpt", before, now, done=3) == [
        "--model.lr_scheduler.total_steps 9 from here on; it was 6"
    ]
