"""What `fit` and `predict` say at the end is what they wrote."""

import csv
import json
import re
from pathlib import Path

from rlsgd.cli.main import main

SMALL = [
    *("--config", "configs/grpo_embedded.yaml", "--trainer.max_epochs=2"),
    *("--data.prompts_per_epoch=4", "--data.group_size=4", "--data.val_problems=16"),
    *("--trainer.check_val_every_n_epoch=1", "--trainer.enable_progress_bar=false"),
]


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_the_headline_of_a_fit_is_what_its_logs_say(tmp_path, capsys):
    run = tmp_path / "run"
    momentum = ["--model.optimizer.momentum=0.9", "--trainer.callbacks+=HFExport"]
    assert main(["fit", *SMALL, *momentum, f"--trainer.default_root_dir={run}"]) == 0
    said = capsys.readouterr().out.splitlines()
    base, *_, last = column(run, "val/accuracy")
    assert f"run folder: {run}; base accuracy {base:.4f}" in said
    assert f"accuracy: {base:.4f} -> {last:.4f}" in said
    records = (run / "update_sparsity.jsonl").read_text().splitlines()
    total = json.loads(records[-1])["total"]
    [shares] = [line for line in said if line.startswith("unchanged weights: ")]
    assert shares.removeprefix("unchanged weights: ").split(", ") == [
        f"{100 * total['unchanged_fp32']:.2f}% exactly (float32)",
        f"{100 * total['unchanged_bf16']:.2f}% rounded to bfloat16",
        f"{100 * total['within_1e-5']:.2f}% within 1e-5",
    ]
    rank = column(run, "update/effective_rank_percent")[-1]
    assert any(line.startswith(f"effective rank of the update: {rank:.2f}%") for line in said)
    state = int(column(run, "memory/optimizer_state_bytes")[-1])
    assert f"optimizer state: {state:,} bytes, 1.00 x the weights" in said and state > 0
    for what, name in {
        "config": "config.yaml",
        "metrics": "metrics.csv",
        "completions": "completions.jsonl",
        "export": "hf",
    }.items():
        assert f"{what}: {run / name}" in said and (run / name).exists()
    assert f"to look at it: tensorboard --logdir {run}" in said


def test_predict_says_what_it_wrote_and_where(tmp_path, capsys):
    """Whatever callbacks the config lists."""
    run = tmp_path / "run"
    command = ["predict", *SMALL, f"--trainer.default_root_dir={run}", "--trainer.callbacks=[]"]
    assert main(command) == 0
    [said] = re.findall(r"^written: (\d+) completions to (.*)$", capsys.readouterr().out, re.M)
    assert said == ("16", str(run / "predictions.jsonl"))
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 16
