"""docs/faults.md: what is met how. Each section there names its test here or elsewhere."""

import json
import re
import resource
import shutil
from pathlib import Path

import torch

from rlsgd.algorithms import GRPO
from rlsgd.cli.main import main
from rlsgd.core.problems import Problem
from rlsgd.data import PromptDataModule
from rlsgd.data.tasks import DatasetTask
from rlsgd.models.loading import EMBEDDED
from rlsgd.resume import IterationCheckpoint
from rlsgd.resume.files import read_checkpoint
from rlsgd.rollout.sampler import assemble, left_pad
from tests.algorithms.setups import EarlyLetters, Spy, Sums, fit, make_module, make_trainer

FAULTS = Path("docs/faults.md").read_text(encoding="utf-8")


def test_every_test_that_the_document_names_exists():
    bodies = {path.name: path.read_text() for path in Path("tests").rglob("test_*.py")}
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", FAULTS)
    assert len(named) > 12
    for file, name in named:
        assert f"def {name}(" in bodies[file], f"{file}::{name} is not there"


# ---- the disk and the files on it


def command(folder: Path, *arguments: str) -> int:
    """Two iterations of the embedded model."""
    small = {
        "trainer.logger": "false",
        "trainer.callbacks": "[]",
        "trainer.enable_progress_bar": "false",
        "trainer.max_epochs": "2",
        "trainer.default_root_dir": str(folder),
        "data.prompts_per_epoch": "4",
        "data.group_size": "4",
        "data.val_problems": "0",
        "data.task": "DatasetTask",
        "data.task.path": str(folder / "sums.jsonl"),
        "data.task.question_column": "question",
        "data.task.answer_column": "answer",
        "data.reward": "ExactAnswer",
    }
    rows = [{"question": f"Calculate {n} + {n}.", "answer": str(2 * n)} for n in range(10, 40)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--{name}={value}" for name, value in small.items()]
    return main(["fit", "--config", "configs/grpo_embedded.yaml", *flags, *arguments])


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    """The limit of a file's size stands for the disk: the kernel refuses the write alike."""
    saved = []

    def save(self, *args):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if saved:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            original(self, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        saved.append(self)

    original = IterationCheckpoint.save
    monkeypatch.setattr(IterationCheckpoint, "save", save)
    assert command(tmp_path, "--trainer.enable_checkpointing=true") == 2
    error = capsys.readouterr().err
    assert "no space left" in error and "--trainer.default_root_dir" in error
    assert str(tmp_path / "checkpoints") in error
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iteration=1.ckpt"]
    assert read_checkpoint(tmp_path / "checkpoints" / "iteration=1.ckpt")["epoch"] == 1


def test_a_truncated_safetensors_file_is_refused(tmp_path, capsys):
    policy = tmp_path / "policy"
    shutil.copytree(EMBEDDED, policy)
    weights_file = policy / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1000])
    for checkpointing in ("true", "false"):
        flags = [f"--model.policy={policy}", f"--trainer.enable_checkpointing={checkpointing}"]
        assert command(tmp_path, *flags) == 2
        assert f"--model.policy {policy}: the model could not be loaded" in capsys.readouterr().err


def test_code_beside_a_model_is_not_run(tmp_path, capsys):
    policy, trace = tmp_path / "policy", tmp_path / "trace"
    shutil.copytree(EMBEDDED, policy)
    settings = json.loads((policy / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own_config.OwnConfig"}}
    (policy / "config.json").write_text(json.dumps(settings))
    (policy / "own_config.py").write_text(f"import os; os.mkdir({str(trace)!r})\n")
    assert command(tmp_path, f"--model.policy={policy}") == 2
    assert "--model.policy" in capsys.readouterr().err
    assert not trace.exists()


def test_a_path_in_the_data_is_text(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("what nobody may read")
    data = tmp_path / "data.jsonl"
    rows = [{"q": f"{secret}", "a": f"file://{secret}"}, {"q": "1+1", "a": "2"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = DatasetTask(str(data), question_column="q", answer_column="a", held_out_fraction=0.0)
    found = {(p.question, p.answer) for p in task.train_problems(seed=0, epoch=0, count=2)}
    assert found == {(row["q"], row["a"]) for row in rows}


# ---- what is sampled


class EndsAtOnce:
    """Every completion is an end-of-sequence token, whose text is empty."""

    def sample(self, policy, prompt_ids, *, completions_per_prompt, **given):
        prompts, mask = left_pad(prompt_ids, given["pad_token_id"], "cpu")
        prompts, mask = (t.repeat_interleave(completions_per_prompt, 0) for t in (prompts, mask))
        stop = given["stop_token_ids"]
        return assemble(prompts, mask, torch.full((len(prompts), 1), stop[0]), stop)


def test_empty_completions_are_scored_and_teach_nothing(tiny_llama, tmp_path):
    module = make_module(GRPO, tiny_llama, sampler=EndsAtOnce())
    trainer, spy = fit(module, tiny_llama, tmp_path)
    assert set(spy.batches[0].completions) == {""}
    metrics = trainer.callback_metrics
    assert metrics["completions/mean_length"] == 1
    assert metrics["reward"] == 0 and metrics["frac_reward_zero_std"] == 1
    assert all(torch.equal(spy.weights[0][name], w) for name, w in spy.weights[-1].items())


class Digits(Sums):
    def train_problems(self, *, seed, epoch, count):
        return [Problem(str(number), "") for number in range(count)]


def test_a_prompt_of_one_token(tiny_llama, tmp_path):
    """Trained like the same prompts after padding, which is how prompts of other lengths go."""
    module = make_module(GRPO, tiny_llama)
    data = PromptDataModule(
        Digits(),
        str(tiny_llama),
        reward=EarlyLetters(),
        prompts_per_epoch=4,
        group_size=4,
        val_problems=0,
    )
    spy = Spy()
    make_trainer(tmp_path, callbacks=[spy]).fit(module, datamodule=data)
    [batch] = spy.batches
    assert all(len(prompt.token_ids) == 1 for prompt in batch.prompts)
    assert not batch.completion_mask[:, 0].any() and batch.completion_mask[:, 1].all()
    moved = [not torch.equal(spy.weights[0][name], w) for name, w in spy.weights[-1].items()]
    assert all(moved)
    assert all(w.isfinite().all() for w in spy.weights[-1].values())
