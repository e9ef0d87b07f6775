"""Each layout trains: two epochs on planted completions, rewarded where they are right."""

import logging
import re

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from rlsgd.algorithms import GRPO
from rlsgd.callbacks import CompletionLog
from rlsgd.core.problems import NothingScored
from rlsgd.data import PromptDataModule
from rlsgd.data.tasks import DatasetTask
from rlsgd.models.loading import load_tokenizer
from rlsgd.rewards import MathVerify
from rlsgd.rollout.sampler import assemble, left_pad
from tests.callbacks.callback_stub import events, jsonl
from tests.data.test_layouts import LAYOUTS, write

TOKENIZER = load_tokenizer("embedded")


class Planted:
    """The first completion of every group is right, the others are one too high."""

    def sample(self, policy, prompt_ids, *, completions_per_prompt, **given):
        texts = []
        for ids in prompt_ids:
            number = int(re.search(r"What is (\d+)", TOKENIZER.decode(ids))[1]) + 1
            texts += [str(number), *[str(number + 1)] * (completions_per_prompt - 1)]
        stop = given["stop_token_ids"]
        rows = [[*TOKENIZER(t, add_special_tokens=False)["input_ids"], stop[0]] for t in texts]
        width = max(map(len, rows))
        completions = torch.tensor([row + [stop[0]] * (width - len(row)) for row in rows])
        prompts, mask = left_pad(prompt_ids, given["pad_token_id"], "cpu")
        prompts, mask = (t.repeat_interleave(completions_per_prompt, 0) for t in (prompts, mask))
        return assemble(prompts, mask, completions, stop)


class Inline(MathVerify):
    isolated = False


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_epochs_with_the_reward_of_the_planted_completions(layout, tmp_path):
    torch.manual_seed(0)
    rows = [LAYOUTS[layout](n) for n in range(8)]
    task = DatasetTask(write(tmp_path, rows), held_out_fraction=0.25)
    data = PromptDataModule(
        task, "embedded", prompts_per_epoch=3, group_size=4, reward=Inline(), val_problems=1
    )
    module = GRPO(sampler=Planted(), max_completion_tokens=6)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", enable_model_summary=False, inference_mode=False, **silent
    )
    trainer.fit(module, datamodule=data)
    metrics = trainer.callback_metrics
    assert trainer.current_epoch == 2
    assert metrics["reward"] == 0.25 and metrics["frac_reward_zero_std"] == 0
    assert metrics["rollout/verifier_failures"] == metrics["val/verifier_failures"] == 0
    assert metrics["val/accuracy"] == 1
    assert metrics["grad_norm"] > 0


def picky(completion, answer):
    if completion != answer:
        raise LookupError("no such answer")
    return 1.0


def broken(completion):
    raise LookupError("no such reward")


@pytest.mark.parametrize("reward", [picky, broken])
def test_failures_are_in_the_terminal_and_in_the_logs(reward, tmp_path, caplog):
    path = write(tmp_path, [LAYOUTS["MATH"](n) for n in range(8)])
    data = PromptDataModule(
        DatasetTask(path), "embedded", prompts_per_epoch=3, group_size=4, reward=reward
    )
    data.val_problems = 0
    module = GRPO(sampler=Planted(), max_completion_tokens=6)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, callbacks=[CompletionLog(count=1)],
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        if reward is broken:
            with pytest.raises(NothingScored, match=r"all 12 completions .*no such reward"):
                trainer.fit(module, datamodule=data)
        else:
            trainer.fit(module, datamodule=data)
            assert trainer.callback_metrics["rollout/verifier_failures"] == 9
    logger.finalize("")
    reason = f"LookupError: no such {'answer' if reward is picky else 'reward'}"
    assert reason in caplog.text
    records = jsonl(tmp_path / "completions.jsonl")
    assert [record.get("failure") for record in records][-3:] == [reason] * 3
    [tag] = events(tmp_path).Tags()["tensors"]
    [shown] = events(tmp_path).Tensors(tag)
    assert "failure" in shown.tensor_proto.string_val[0].decode().splitlines()[0]
