"""Training raises the difficulty, and a resumed run equals one that never stopped."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from rlsgd.algorithms import DAPO, GRPO
from rlsgd.data import AdaptiveReasoningGym, PromptDataModule
from rlsgd.data.tasks.adaptive import Environment
from rlsgd.rewards.base import Reward

SUMS = {"operators": ["+"], "allow_parentheses": False, "allow_negation": False}
TWO_TERMS = Environment("basic_arithmetic", {**SUMS, "min_terms": 2, "max_terms": 2})
ONE_DIGIT = Environment("basic_arithmetic", {**SUMS, "min_digits": 1, "max_digits": 1})


class SomeDigit(Reward):
    """A random model often has one among six tokens, but not always."""

    isolated = False

    def score(self, completion, problem):
        return float(any(character.isdigit() for character in completion))


class Always(SomeDigit):
    def score(self, completion, problem):
        return 1.0


class Spy(Callback):
    """Keeps what was sampled and what was logged in each epoch, and the weights at the end."""

    def __init__(self):
        self.sampled, self.metrics, self.digits, self.weights = [], [], [], []

    def on_fit_start(self, trainer, pl_module):
        rollout = pl_module.rollout  # a batch has the rows that train, and may have none

        def noted(*arguments):
            experience = rollout(*arguments)
            entries = [p.problem.metadata["entry"]["metadata"] for p in experience.prompts]
            self.digits.append({entry["num_digits"] for entry in entries})
            return experience

        pl_module.rollout = noted

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sampled.append((batch.input_ids, [prompt.text for prompt in batch.prompts]))

    def on_train_epoch_end(self, trainer, pl_module):
        metrics = trainer.callback_metrics
        self.metrics.append({k: float(v) for k, v in metrics.items() if k.startswith("difficulty")})
        self.weights = [parameter.detach().clone() for parameter in pl_module.policy.parameters()]


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=2.0**-4, momentum=0.9)


def fit(model, folder, epochs, *, algorithm=GRPO, ckpt_path=None, reward=None, **options):
    environments = {"digits": TWO_TERMS, "terms": ONE_DIGIT}
    task = AdaptiveReasoningGym(**{"environments": environments, **options})
    data = PromptDataModule(
        task,
        str(model),
        reward=reward or SomeDigit(),
        prompts_per_epoch=4,
        group_size=4,
        val_problems=0,
    )
    module = algorithm(policy=str(model), max_completion_tokens=6, optimizer=momentum)
    spy = Spy()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[spy],
        default_root_dir=folder,
        enable_checkpointing=False,
        **quiet,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, spy, task


def test_a_policy_that_is_always_right_rises_every_epoch(tiny_llama, tmp_path):
    # --- 4 prompts an epoch, all of them at `high` where the window is 1 ---
    _, spy, _ = fit(
        tiny_llama,
        tmp_path,
        5,
        environments={"digits": TWO_TERMS},
        reward=Always(),
        window=1,
        min_prompts=4,
    )
    name = "difficulty/digits"
    assert [logged[f"{name}/high"] for logged in spy.metrics] == [0, 1, 2, 3, 3]
    assert [logged[f"{name}/low"] for logged in spy.metrics] == [0, 1, 2, 3, 3]
    assert {logged[f"{name}/accuracy_at_high"] for logged in spy.metrics} == {1.0}
    assert spy.digits == [{1}, {2}, {3}, {4}, {4}]


@pytest.mark.parametrize("half", [3, 5])
def test_resumed_equals_uninterrupted(tiny_llama, tmp_path, half):
    options = {"threshold": 0.6, "min_prompts": 4, "window": 2}
    _, whole, task = fit(tiny_llama, tmp_path, 8, **options)
    trainer, first, at_half = fit(tiny_llama, tmp_path, half, **options)
    checkpoint = tmp_path / "half.ckpt"
    trainer.save_checkpoint(checkpoint)
    _, second, resumed = fit(tiny_llama, tmp_path, 8, ckpt_path=checkpoint, **options)
    assert resumed.state_dict() == task.state_dict()
    assert first.metrics + second.metrics == whole.metrics
    sampled = first.sampled + second.sampled
    assert len(sampled) == len(whole.sampled) == 8
    for (ids, prompts), (expected_ids, expected_prompts) in zip(
        sampled, whole.sampled, strict=True
    ):
        assert prompts == expected_prompts
        assert torch.equal(ids, expected_ids)
    for weight, expected in zip(second.weights, whole.weights, strict=True):
        assert torch.equal(weight, expected)
    # --- there was something to restore, and something happened after it ---
    state, end = at_half.state_dict(), task.state_dict()
    assert any(own["rises"] for own in state.values())
    assert any(any(own["counts"]) for own in state.values())
    assert any(end[label]["rises"] != state[label]["rises"] for label in end)


def test_every_completion_that_dapo_samples_counts(tiny_llama, tmp_path):
    # --- all scored alike: the first round and three more, each 4 prompts with 4 completions ---
    _, spy, task = fit(
        tiny_llama,
        tmp_path,
        1,
        algorithm=DAPO,
        environments={"digits": TWO_TERMS},
        reward=Always(),
        initial_difficulty=2,
        window=1,
        min_prompts=1000,
    )
    assert task.difficulties["digits"].counts == [16, 64, 64]
    assert spy.metrics[0]["difficulty/digits/prompts_at_high"] == 16
