"""Completions side by side, heatmaps, and what must not be passed on."""

import pytest

from rlsgd.report.heatmaps import Cell, cell, sparsity_heatmaps
from rlsgd.report.redaction import redacted, redacted_text
from rlsgd.report.samples import MAX_CHARACTERS, Sample, side_by_side
from rlsgd.report.sources import load_sources
from tests.report.report_data import completion, fit_config, write_run, write_study


def runs_of(*folders):
    return [run for source in load_sources([str(f) for f in folders]) for run in source.runs]


def adam(seed: int = 0) -> dict:
    return fit_config(seed, "torch.optim.AdamW")


ARMS = ["sgd-lr0.01", "adamw-lr0.01"]


def test_equal_completions_are_counted_and_arms_stand_in_their_order(tmp_path):
    answers = [completion("4"), completion("5", 0.0, truncated=True), completion("4")]
    runs = runs_of(
        write_run(tmp_path / "a", adam(), completions=[completion("22", 0.5)]),
        write_run(tmp_path / "s", fit_config(0), completions=answers),
    )
    (shown,) = side_by_side(runs, ARMS, 6)
    assert (shown.seed, shown.epoch, shown.prompt, shown.answer) == (0, 1, "2 + 2?", "4")
    assert shown.arms == [
        ("sgd-lr0.01", [Sample("4", 2, 1.0, False), Sample("5", 1, 0.0, True)]),
        ("adamw-lr0.01", [Sample("22", 1, 0.5, False)]),
    ]
    assert side_by_side(runs, ["adamw-lr0.01"], 6)[0].arms == [shown.arms[1]]


def test_prompts_that_all_arms_saw_come_alone(tmp_path):
    both, alone = completion("4", epoch=3), completion("4", epoch=9, prompt="3 + 1?")
    runs = runs_of(
        write_run(tmp_path / "s", fit_config(0), completions=[both, alone]),
        write_run(tmp_path / "a", adam(), completions=[both]),
    )
    assert [s.prompt for s in side_by_side(runs, ARMS, 6)] == ["2 + 2?"]


def test_seeds_and_problems_are_not_mixed(tmp_path):
    runs = runs_of(
        write_run(tmp_path / "s", fit_config(0), completions=[completion("4")]),
        write_run(tmp_path / "a", adam(1), completions=[completion("4")]),
        write_run(tmp_path / "b", adam() | {"data": {}}, completions=[completion("4")]),
    )
    names = [*ARMS, "adamw-lr0.01 (b)"]
    shown = side_by_side(runs, names, 6)
    assert [(s.seed, [arm for arm, _ in s.arms]) for s in shown] == [
        (0, ["sgd-lr0.01"]), (0, ["adamw-lr0.01 (b)"]), (1, ["adamw-lr0.01"])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "epochs"),
    [
        (0, []),
        (1, [(0, 40)]),
        (2, [(0, 0), (0, 40)]),
        (3, [(0, 0), (0, 20), (0, 40)]),
        (6, [(0, e) for e in (0, 10, 20, 30, 40)] + [(1, 40)]),
    ],
)
def test_prompts_are_spread_over_training(tmp_path, count, epochs):
    answers = [completion("4", epoch=epoch) for epoch in (0, 10, 20, 30, 40)]
    runs = runs_of(
        *(write_run(tmp_path / str(s), fit_config(s), completions=answers) for s in (1, 0))
    )
    shown = side_by_side(runs, ARMS, count)
    assert [(s.seed, s.epoch) for s in shown] == epochs


def test_texts_are_bounded_and_can_be_shown(tmp_path):
    odd = completion("a\x00b\x1bc\td\ne\r\nf\ud800", prompt="p" * (MAX_CHARACTERS + 5))
    (shown,) = side_by_side(
        runs_of(write_run(tmp_path / "s", fit_config(0), completions=[odd])), ARMS, 1
    )
    assert shown.arms[0][1][0].completion == "a\ufffdb\ufffdc\td\ne\nf\ufffd"
    assert shown.prompt == "p" * MAX_CHARACTERS + "… (5 more characters)"


def test_heatmap_by_hand(tmp_path):
    runs = runs_of(
        write_run(tmp_path / "0", fit_config(0), unchanged=0.5),
        write_run(tmp_path / "1", fit_config(1), unchanged=0.75),
    )
    (found,) = sparsity_heatmaps(runs, ARMS)
    assert (found.arm, found.seeds, found.epoch) == ("sgd-lr0.01", 2, 2)
    assert found.kinds == ["q", "mlp"]
    ((label, (q, mlp)),) = found.rows
    # 255 + 0.625 * (8, 48, 107) - 0.625 * 255 = (100.6, 125.6, 162.5)
    assert label == "0" and q == Cell("62.5", "rgb(101,126,162)", "#fff")
    assert mlp == Cell("100.0", "rgb(8,48,107)", "#fff")
    assert cell(0.0) == Cell("0.0", "rgb(255,255,255)", "#111")
    assert cell(0.99999).text == ">99.9"  # not the 100 that it is not


def test_runs_of_other_horizons_have_no_common_heatmap(tmp_path):
    folder = write_study(tmp_path / "study")
    (folder / "sgd/seed-1/update_sparsity.jsonl").write_text('{"epoch": 0, "tensors": {}}\n')
    assert [found.arm for found in sparsity_heatmaps(runs_of(folder), ["adamw", "sgd"])] == [
        "adamw"
    ]


SECRETS = {
    "rlsgd --logger.api_key abc123 --x 1": "rlsgd --logger.api_key [redacted] --x 1",
    "rlsgd fit --hub_token=abc123": "rlsgd fit --hub_token=[redacted]",
    "WANDB_API_KEY=abc123 rlsgd fit": "WANDB_API_KEY=[redacted] rlsgd fit",
    "password: abc123\nb: 2": "password: [redacted]\nb: 2",
    "load hf_abcdefghijklmnop0123 now": "load [redacted] now",
    "https://me:abc123@host/x": "https://[redacted]@host/x",
}


@pytest.mark.parametrize("text", SECRETS)
def test_credentials_in_a_command_are_left_out(text):
    assert redacted_text(text) == SECRETS[text]


@pytest.mark.parametrize(
    "text",
    [
        "rlsgd fit --model.max_completion_tokens 6 --model.optimizer.lr 1e-3",
        "aggregation: token-mean",
        "--data.max_prompt_tokens=1024",
        "https://host:80/x@y",
        "monkey=1",
    ],
)
def test_the_rest_of_a_command_stays(text):
    assert redacted_text(text) == text


def test_credentials_in_a_configuration_are_left_out():
    config = {
        "model": {"hub_token": "x", "max_completion_tokens": 6, "aggregation": "token-mean"},
        "list": [{"API-Key": "x"}, "sk-abcdefghijklmnop0", 3],
        "secret": None,
        "credentials": {"user": "u"},
    }
    assert redacted(config) == {
        "model": {
            "hub_token": "[redacted]", "max_completion_tokens": 6, "aggregation": "token-mean"
        },
        "list": [{"API-Key": "[redacted]"}, "[redacted]", 3],
        "secret": None,
        "credentials": "[redacted]",
    }  # fmt: skip
