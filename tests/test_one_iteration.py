"""The file that shows one iteration whole is an oracle: `rlsgd fit` must end with its weights."""

import importlib.util
from pathlib import Path

import torch

from rlsgd.cli.training import TrainingCLI
from rlsgd.core.problems import Problem
from rlsgd.data.tasks.base import Task
from rlsgd.rewards import ExactAnswer

FILE = Path(__file__).parents[1] / "examples/one_iteration.py"
spec = importlib.util.spec_from_file_location("one_iteration", FILE)
assert spec is not None and spec.loader is not None
one_iteration = importlib.util.module_from_spec(spec)
spec.loader.exec_module(one_iteration)


class Sums(Task):
    """The questions of the example."""

    def train_problems(self, *, seed: int, epoch: int, count: int) -> list[Problem]:
        problems = [Problem(*pair) for pair in one_iteration.sums(epoch)]
        assert len(problems) == count
        return problems

    def validation_problems(self, count: int) -> list[Problem]:
        return []

    def test_problems(self, count: int) -> list[Problem]:
        return []

    def default_reward(self) -> ExactAnswer:
        return ExactAnswer()


def test_weights_equal_those_of_fit_bit_for_bit(tmp_path, capsys):
    expected = one_iteration.run(3)
    printed = capsys.readouterr().out.splitlines()
    settings = {
        "seed_everything": one_iteration.SEED,
        "model": "GRPO",
        "model.policy": "embedded",
        "model.optimizer": "torch.optim.SGD",
        "model.optimizer.init_args.lr": one_iteration.LEARNING_RATE,
        "model.share_prompts": "false",  # which rounds otherwise
        "model.max_completion_tokens": one_iteration.MAX_COMPLETION_TOKENS,
        "data": "PromptDataModule",
        "data.task": f"{__name__}.Sums",
        "data.prompts_per_epoch": one_iteration.PROMPTS,
        "data.group_size": one_iteration.GROUP_SIZE,
        "data.val_problems": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 3,
        "trainer.gradient_clip_val": one_iteration.MAX_GRAD_NORM,
        "trainer.logger": "false",
        "trainer.enable_checkpointing": "false",
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": tmp_path,
    }
    cli = TrainingCLI.run(["fit", *(f"--{flag}={value}" for flag, value in settings.items())])
    trained = dict(cli.model.policy.named_parameters())
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], weight) for name, weight in expected.items())
    last = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    for name, value in (("reward", "reward"), ("loss", "loss"), ("grad_norm", "grad norm")):
        shown = printed[-1].split(f"{value} ")[1].split()[0]
        digits = len(shown.split(".")[1])
        assert f"{last[name]:.{digits}f}" == shown
    assert 0.3 < last["reward"] < 0.9, "or nothing was learned from"


def test_the_file_is_short_and_knows_no_more_than_the_maths():
    lines = FILE.read_text().splitlines()
    assert len(lines) <= 200
    imported = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    ours = {name for name in imported if name.startswith("rlsgd.")}
    assert all(name.startswith("rlsgd.functional.") for name in ours)
    assert not any("lightning" in name for name in imported)
