"""Per-problem results over ranks, and `rlsgd test` and `validate` as they are typed."""

import json
from types import SimpleNamespace

import pytest
import torch

from rlsgd.algorithms.evaluation import Estimate, ProblemResults, estimates, powers_of_two
from rlsgd.cli.main import main
from rlsgd.cli.training import TrainingCLI

SMALL = [
    *("--config", "configs/grpo_embedded.yaml", "--trainer.logger", "false"),
    *("--trainer.callbacks", "[]", "--trainer.enable_progress_bar", "false"),
    *("--trainer.accelerator", "cpu"),
    *("--data.val_problems", "8", "--data.val_batch_size", "4", "--model.eval_samples", "4"),
]
NAMES = ["accuracy", "avg@4", "pass@1", "pass@2", "pass@4", "majority@4"]
# greedy, four samples and their answers for each of five problems
PROBLEMS = [
    (1, [1, 1, 0, 0], ["4", "4", "5", "5"]),
    (0, [0, 0, 0, 0], ["1", "2", "2", None]),
    (1, [1, 1, 1, 1], ["7", "7", "7", "7"]),
    (0, [1, 0, 0, 0], ["3", None, None, None]),
    (0, [0, 1, 0, 0], ["8", "9", "8", "8"]),
]


def update(metric, problems):
    greedy, sampled, answers = zip(*problems, strict=True)
    flat = [answer for texts in answers for answer in texts]
    metric.update(torch.tensor(greedy), torch.tensor(sampled).flatten(), flat)


def results(*batches):
    metric = ProblemResults(4)
    for batch in batches:
        update(metric, batch)
    return metric


def test_values_by_hand():
    values = results(PROBLEMS[:3], PROBLEMS[3:]).compute()
    assert list(values) == NAMES
    assert values["accuracy"].tolist() == [1, 0, 1, 0, 0]
    assert values["avg@4"].tolist() == [0.5, 0, 1, 0.25, 0.25]
    # with 2 of 4 right a pair has none with chance 1/2 * 1/3; with 1 of 4 with chance 1/2
    assert values["pass@2"].tolist() == pytest.approx([5 / 6, 0, 1, 0.5, 0.5], rel=1e-15)
    assert values["pass@4"].tolist() == [1, 0, 1, 1, 1]
    assert values["majority@4"].tolist() == [0.5, 0, 1, 1, 0]


def test_greedy_alone_has_accuracy_alone():
    metric = ProblemResults()
    metric.update(torch.tensor([1.0, 0.0]))
    assert {name: v.tolist() for name, v in metric.compute().items()} == {"accuracy": [1, 0]}


def test_two_uneven_ranks_equal_one():
    """What torchmetrics gathers is put in its place: every state of rank 0, then of rank 1."""
    ranks = [results(PROBLEMS[:1], PROBLEMS[1:2]), results(PROBLEMS[2:])]
    gathered = [
        [torch.cat(getattr(rank, state)) for rank in ranks]
        for state in ("greedy", "sampled", "majority")
    ]
    one = results(PROBLEMS).compute()
    for rank in ranks:
        answers = iter(gathered)
        rank.dist_sync_fn = lambda tensor, group, answers=answers: next(answers)
        rank.distributed_available_fn = lambda: True
        both = rank.compute()
        assert list(both) == list(one)
        assert all(torch.equal(both[name], one[name]) for name in one)
        assert estimates(both, seed=5) == estimates(one, seed=5)


def test_estimates_of_one_problem_have_no_width():
    metric = results(PROBLEMS[:1])
    assert estimates(metric.compute(), seed=0)["avg@4"] == Estimate(0.5, 0.5, 0.5)


def test_a_reset_forgets():
    metric = results(PROBLEMS)
    metric.reset()
    update(metric, PROBLEMS[1:3])
    assert metric.compute()["accuracy"].tolist() == [0, 1]


def test_powers_of_two():
    assert [powers_of_two(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8]]


@pytest.mark.parametrize("flag", ["--model.eval_samples=-1", "--model.eval_temperature=0"])
def test_wrong_values_are_refused_by_the_name_of_their_flag(flag, capsys):
    assert main(["test", *SMALL, flag]) == 2
    assert flag.split("=")[0] in capsys.readouterr().err


@pytest.fixture(scope="module")
def tests_by_seed(tmp_path_factory):
    """What `rlsgd test` writes with the seeds 0, 0 and 1."""
    folders = [tmp_path_factory.mktemp(f"seed{seed}") for seed in (0, 0, 1)]
    for seed, folder in zip((0, 0, 1), folders, strict=True):
        callback = "[{class_path: EvaluationReport, init_args: {per_problem: true}}]"
        flags = ["--trainer.callbacks", callback, "--trainer.default_root_dir", str(folder)]
        assert main(["test", *SMALL, *flags, "--seed_everything", str(seed)]) == 0
    return [(folder / "evaluation.json").read_text() for folder in folders]


def test_a_repeated_test_writes_the_same_bytes(tests_by_seed):
    first, again, _ = tests_by_seed
    assert first == again


def test_another_seed_samples_other_completions(tests_by_seed):
    first, _, other = (json.loads(text)["per_problem"] for text in tests_by_seed)
    assert list(first) == NAMES and len(first["avg@4"]) == 8
    assert first["accuracy"] == other["accuracy"], "greedy does not depend on the seed"
    assert first["avg@4"] != other["avg@4"]


def test_the_record_agrees_with_itself(tests_by_seed):
    record = json.loads(tests_by_seed[0])
    assert (record["split"], record["problems"], record["eval_samples"]) == ("test", 8, 4)
    for name, values in record["per_problem"].items():
        metric = record["metrics"][name]
        assert metric["value"] == pytest.approx(sum(values) / 8, rel=1e-14)
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert record["metrics"]["pass@1"]["value"] == pytest.approx(
        record["metrics"]["avg@4"]["value"], rel=1e-14
    )


def test_validate_is_full_on_the_command_line_and_greedy_within_a_fit(tmp_path, capsys):
    cli = TrainingCLI.run(["validate", *SMALL, "--trainer.default_root_dir", str(tmp_path)])
    logged = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    accuracy = cli.model.evaluator.estimates["accuracy"]
    assert logged["val/accuracy"] == accuracy.value
    ends = [logged["val/accuracy/low"], logged["val/accuracy/high"]]
    assert ends == pytest.approx([accuracy.low, accuracy.high], rel=1e-6)  # logged in float32
    assert {f"val/{name}" for name in NAMES} <= logged.keys()
    assert "majority@4" in capsys.readouterr().out

    (tmp_path / "evaluation.json").unlink()
    cli.model.evaluator.validates_fully = (
        False  # as it is where `fit` validates the starting policy
    )
    sampled = []
    sampler = cli.model.sampler
    spy = SimpleNamespace(
        sample=lambda *a, **k: sampled.append(k["temperature"]) or sampler.sample(*a, **k)
    )
    cli.model.sampler = spy
    [greedy] = cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    assert greedy["val/accuracy"] == logged["val/accuracy"]
    quick = {"accuracy", "reward", "mean_length", "truncated_fraction", "verifier_failures"}
    assert greedy.keys() == {f"val/{name}" for name in quick}
    assert sampled == [0.0, 0.0], "one greedy call for each batch"
    assert not (tmp_path / "evaluation.json").exists()
