"""The record and the table, from a module and a trainer that only hold numbers."""

import json
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from rlsgd.algorithms.evaluation import Estimate
from rlsgd.callbacks import EvaluationReport
from rlsgd.callbacks.evaluation_report import settings_of


class Sums:
    def __init__(self):
        self.digits, self.config, self._cache = 2, {"signs": ["+"]}, "private"
        self.share = Fraction(1, 2)


@pytest.fixture
def trainer(tmp_path):
    names = {"reward": 0.75, "mean_length": 3.0, "truncated_fraction": 0.0}
    return SimpleNamespace(
        log_dir=str(tmp_path / "run"),
        is_global_zero=True,
        ckpt_path=None,
        world_size=2,
        datamodule=SimpleNamespace(
            task=Sums(), scorer=SimpleNamespace(reward=Sums()), val_batch_size=4
        ),
        callback_metrics={f"test/{k}": torch.tensor(v) for k, v in names.items()},
    )


@pytest.fixture
def module():
    return SimpleNamespace(
        policy_path="some/policy",
        max_completion_tokens=6,
        seed=7,
        evaluator=SimpleNamespace(
            is_full=lambda module: True,
            num_samples=2,
            temperature=0.5,
            values={"accuracy": torch.tensor([1.0, 0.0]), "avg@2": torch.tensor([0.5, 0.0])},
            estimates={
                "accuracy": Estimate(0.5, 0.0, 1.0),
                "avg@2": Estimate(0.25, 0.0, 0.53125),
            },
        ),
    )


def test_the_file_has_every_metric_and_what_it_depends_on(trainer, module, tmp_path):
    EvaluationReport().on_test_end(trainer, module)
    sums = {"class": "Sums", "digits": 2, "config": {"signs": ["+"]}}
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == {
        "policy": "some/policy",
        "checkpoint": None,
        "split": "test",
        "problems": 2,
        "task": sums,
        "reward": sums,
        "eval_samples": 2,
        "eval_temperature": 0.5,
        "max_completion_tokens": 6,
        "seed": 7,
        "val_batch_size": 4,
        "ranks": 2,
        "metrics": {
            "accuracy": {"value": 0.5, "low": 0.0, "high": 1.0},
            "avg@2": {"value": 0.25, "low": 0.0, "high": 0.53125},
            "reward": {"value": 0.75},
            "mean_length": {"value": 3.0},
            "truncated_fraction": {"value": 0.0},
        },
    }


def test_the_table_has_the_same_numbers(trainer, module, capsys):
    EvaluationReport().on_test_end(trainer, module)
    out = capsys.readouterr().out
    [row] = [line for line in out.splitlines() if "avg@2" in line]
    assert "0.2500" in row and "0.0000 to 0.5312" in row
    assert "2 test problems of Sums" in " ".join(out.split())


def test_problems_are_written_on_request(trainer, module, tmp_path):
    EvaluationReport(per_problem=True).on_test_end(trainer, module)
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert record["per_problem"] == {"accuracy": [1.0, 0.0], "avg@2": [0.5, 0.0]}


def test_other_ranks_and_the_validation_of_a_fit_write_nothing(trainer, module, tmp_path, capsys):
    trainer.is_global_zero = False
    EvaluationReport().on_test_end(trainer, module)
    trainer.is_global_zero, module.evaluator.is_full = True, lambda module: False
    EvaluationReport().on_validation_end(trainer, module)
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_settings_leave_out_what_is_private_or_no_plain_data():
    assert settings_of(Sums()) == {"class": "Sums", "digits": 2, "config": {"signs": ["+"]}}
