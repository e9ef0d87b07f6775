"""`rlsgd memory` from the command line."""

import json
from pathlib import Path

import pytest

from rlsgd.cli.main import main
from rlsgd.planner.command import read_size
from rlsgd.planner.report import readable

SMALL = ("--max_prompt_tokens", "6", "--max_completion_tokens", "4", "--prompts_per_epoch", "8")


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["memory", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_record(capsys: pytest.CaptureFixture[str]):
    record = run_json(
        capsys,
        *("--model", "qwen3-1.7b", "--optimizer", "torch.optim.AdamW", "SGD", "--gpus", "8"),
        *("--precision", "bf16-true", "--sampler", "server", "--gpu_memory", "141GB"),
    )
    weights = 1_720_574_976
    assert record["weights"] == weights and record["gpu_bytes"] == 141e9
    adamw, sgd = record["optimizers"].values()
    assert list(record["optimizers"]) == ["torch.optim.AdamW", "SGD"]
    for found, bytes_per_weight in ((adamw, 6), (sgd, 2)):
        total = found["weights_and_state_of_all_gpus"]
        assert total == pytest.approx(bytes_per_weight * weights, rel=1e-4)
        assert found["peak"] == max(found["peaks"].values())
        assert found["peaks"] == {k: sum(v.values()) for k, v in found["moments"].items()}
        assert found["fits"] == (found["peak"] <= 141e9)
        # 256 x 4 completions: 128 on each GPU, one at a time; bfloat16 there twice, float32 back
        assert found["gradient_traffic"] == 128 * (2 * 2 + 4) * weights * 7 // 8
    assert record["weight_sync_bytes"]["dense"] == 2 * weights
    # 28 layers, 8 heads of width 128, 128 completions of 3072 tokens
    assert record["engine_bytes"]["KV cache"] == 2 * 28 * 8 * 128 * 2 * 128 * 3072


def test_tables_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "plan"
    momentum = '{"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}'
    arguments = ["--model", "embedded", "--optimizer", momentum, "AdamW", "--out", str(out)]
    assert main(["memory", *arguments, *SMALL]) == 0
    shown = capsys.readouterr().out
    record = json.loads((out / "memory.json").read_text())
    assert (out / "memory.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    states = [found["terms"]["optimizer state"] for found in record["optimizers"].values()]
    weights = record["weights"]
    assert states == [4 * weights, 8 * weights + 4 * 29]
    for text in (f"{weights:,} weights", "float32 master copies", *map(readable, states)):
        assert text in shown
    assert record["setup"]["max_prompt_tokens"] == 6


def test_shared_prompts_are_a_flag(capsys: pytest.CaptureFixture[str]):
    arguments = ("--model", "embedded", "--microbatch", "4", "--precision", "32-true", *SMALL)
    found = [run_json(capsys, *arguments, "--share_prompts", flag) for flag in ("true", "false")]
    shared, alone = (
        record["optimizers"]["torch.optim.SGD"]["terms"]["activations"] for record in found
    )
    assert shared < alone
    assert [record["setup"]["share_prompts"] for record in found] == [True, False]


def test_what_is_not_in_a_plan_is_said(tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--model", str(tiny_gpt2), "--optimizer", "torch.optim.Adagrad", *SMALL]
    assert main(["memory", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "activations and logits are not in it" in shown
    assert "what a step of Adagrad needs besides its state is not known" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nothing"), "--model nothing: no such folder"),
        (("--model", "embedded", "--optimizer", "Nothing"), "--optimizer Nothing: no such class"),
        (("--model", "embedded", "--gpus", "3"), "--prompts_per_epoch 256: cannot be divided"),
        (("--model", "embedded", "--gpu_memory", "80"), "--gpu_memory 80: write a number above 0"),
        (("--model", "embedded", "--changed_share", "1.5"), "--changed_share 1.5: must be from 0"),
        (("--model", "embedded", "--out", "README.md/x"), "--out README.md/x: "),
    ],
)
def test_errors_name_the_flag(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["memory", *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"rlsgd memory: error: {message}") and shown.count("\n") == 1


def test_an_unknown_precision_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["memory", "--model", "embedded", "--precision", "16-mixed"]) == 2
    assert "precision" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * 2**30), ("141 GB", 141e9), ("1.5TB", 1.5e12), ("512MiB", 2**29)],
)
def test_sizes(text: str, size: float):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["80", "GB", "0GB", "-1GB", "80GBs", "1e3GB"])
def test_sizes_that_are_none(text: str):
    with pytest.raises(ValueError, match=r"^--gpu_memory"):
        read_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (999, "999 B"), (1720574976, "1.72 GB"), (26_340_000, "26.3 MB"), (112e9, "112 GB")],
)
def test_readable(size: int, text: str):
    assert readable(size) == text
