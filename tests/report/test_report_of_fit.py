"""`rlsgd report` on what `rlsgd fit` really leaves."""

import json
import platform
import shlex
from importlib.metadata import version
from pathlib import Path

from rlsgd.cli.main import main


def test_a_run_of_fit_is_reported_with_command_and_versions(tmp_path: Path, make_report, parsed):
    folder = tmp_path / "run"
    logger = {"save_dir": str(folder), "name": "", "version": ""}
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger}
    names = ("UpdateSparsity", "EffectiveRank", "Memory", "CompletionLog")
    callbacks = [{"class_path": f"rlsgd.callbacks.{name}"} for name in names]
    arguments = [
        *("fit", "--config", "configs/grpo_embedded.yaml", "--trainer.max_epochs", "2"),
        *(f"--trainer.default_root_dir={folder}", f"--trainer.callbacks={json.dumps(callbacks)}"),
        *(f"--trainer.logger=[{json.dumps(csv)}]", "--data.val_problems", "4"),
        *("--data.prompts_per_epoch", "4", "--data.group_size", "4"),
        *("--trainer.check_val_every_n_epoch", "1", "--trainer.enable_progress_bar", "false"),
    ]
    assert main(arguments) == 0
    recorded = json.loads((folder / "provenance.json").read_text())
    assert recorded["command"] == shlex.join(["rlsgd", *arguments])
    assert recorded["versions"]["torch"] == version("torch")
    assert recorded["versions"]["python"] == platform.python_version()

    out = make_report(folder)
    rows = parsed(out).rows
    for name, number in recorded["versions"].items():
        assert [name, number] in rows
    assert ["processor", recorded["machine"]["processor"]] in rows
    final = json.loads((folder / "update_sparsity.jsonl").read_text().splitlines()[-1])["total"]
    (update,) = [row for row in rows if row[0] == "sgd-lr0.003" and row[-1].startswith("2 epochs")]
    assert update[1] == f"{100 * final['unchanged_bf16']:.2f}"
    assert (out / "report.html").read_text().count('<div class="completion">') >= 2
    assert [row[0] for row in rows if len(row) > 7 and row[0] in "012"] == ["0", "1", "2"]
