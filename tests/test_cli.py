"""The command line: errors that name a flag before anything expensive, and exit statuses."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsgd.cli import main as cli
from rlsgd.cli import training as training_cli
from rlsgd.cli.main import main, user_error
from rlsgd.models.loading import EMBEDDED
from tests.helpers.small_text import prepare_small_text

CONFIG = "configs/grpo_embedded.yaml"
SMALL = [
    *("--trainer.logger", "false", "--trainer.callbacks", "[]"),
    *("--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"),
    *("--data.prompts_per_epoch", "4", "--data.group_size", "4"),
    *("--data.val_problems", "4", "--trainer.accelerator", "cpu"),
    "",  # the folder that a run writes to: see `own_folder`
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path):
    SMALL[-1] = f"--trainer.default_root_dir={tmp_path}"


EXPLODING = ["--model.optimizer.lr=1e38", "--model.optimizer.weight_decay=1e3"]


def fit(*arguments, config=CONFIG):
    return main(["fit", "--config", config, *SMALL, *arguments])


def test_help_needs_no_heavy_import(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    assert "rlsgd study" in capsys.readouterr().out


def test_user_error_finds_the_flag_inside_a_wrapped_message():
    wrapped = "Does not validate\nErrors:\n  - --model.clip_low must be in [0, 1)\n  - Expected"
    assert user_error(ValueError(wrapped)) == "--model.clip_low must be in [0, 1)"
    assert user_error(ValueError("plain bug")) is None


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--model.policy", "no/such/folder/here"], "--model.policy"),
        (["--model.policy", "smollm2-135m"], "--model.policy"),
        (["--model.aggregation", "mean"], "--model.aggregation"),
        (["--model.clip_low", "1.5"], "--model.clip_low"),
        (["--model.temperature", "0"], "--model.temperature"),
        (["--model.kl_estimator", "k9"], "--model.kl_estimator"),
        (["--model.max_completion_tokens", "0"], "--model.max_completion_tokens"),
        (["--model.max_completion_tokens", "255"], "--model.max_completion_tokens"),
        (["--data.group_size", "1"], "--data.group_size"),
        (["--data.max_prompt_tokens", "3"], "--data.max_prompt_tokens"),
        (["--data.task.name", "chain_sums"], "--data.task.name"),
        (["--model.minibatches", "3"], "--model.minibatches"),
        (["--trainer.accumulate_grad_batches", "17"], "--trainer.accumulate_grad_batches"),
    ],
)
def test_wrong_values_are_refused_by_the_name_of_their_flag(arguments, flag, capsys, monkeypatch):
    sampled = []
    monkeypatch.setattr("rlsgd.rollout.sampler.HFSampler.sample", lambda *a, **k: sampled.append(1))
    assert fit(*arguments) == 2
    assert flag in capsys.readouterr().err
    assert not sampled, "the error came after sampling had begun"


def test_a_dataset_without_the_mapped_column(tmp_path, capsys):
    data = tmp_path / "sums.jsonl"
    data.write_text('{"problem": "1 + 1 =", "answer": "2"}\n' * 8)
    task = ["--data.task", "DatasetTask", "--data.task.path", str(data)]
    assert fit(*task, "--data.reward", "ExactAnswer") == 2
    error = capsys.readouterr().err
    assert "--data.task.question_column" in error and "problem" in error


def test_an_empty_dataset(tmp_path, capsys):
    data = tmp_path / "sums.jsonl"
    data.write_text("")
    task = ["--data.task", "DatasetTask", "--data.task.path", str(data)]
    assert fit(*task, "--data.reward", "ExactAnswer") == 2
    assert "--data.task.path" in capsys.readouterr().err


def test_a_learning_rate_that_explodes_exits_3_and_names_it(capsys):
    status = fit(*EXPLODING)
    assert status == 3
    assert "--model.optimizer.init_args.lr" in capsys.readouterr().err


def test_weights_that_explode_in_the_last_step_are_noticed(capsys):
    assert fit(*EXPLODING, "--trainer.max_epochs=1") == 3


def test_weights_survive_a_gradient_that_is_not_finite(monkeypatch):
    """The check comes before the optimizer step, so what was learned is not destroyed."""
    from rlsgd.algorithms import GRPO
    from rlsgd.core.types import DivergedError

    kept = {}

    def poisoned(self, batch):
        loss = original(self, batch)
        kept["module"] = self
        kept["before"] = {n: p.detach().clone() for n, p in self.policy.named_parameters()}
        # finite forward, infinite gradient: the norm check must catch it, not the loss check
        return loss + 0 * loss + _InfiniteGradient.apply(next(self.policy.parameters()).sum())

    original = GRPO.loss
    monkeypatch.setattr(GRPO, "loss", poisoned)
    with pytest.raises(DivergedError, match="gradient norm"):
        training_cli.TrainingCLI.run(["fit", "--config", CONFIG, *SMALL])
    for name, parameter in kept["module"].policy.named_parameters():
        assert torch.equal(parameter, kept["before"][name])


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 0

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.inf


def test_too_little_disk_is_refused_before_training(monkeypatch, capsys, tmp_path):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    arguments = ["--trainer.enable_checkpointing=true", f"--trainer.default_root_dir={tmp_path}"]
    assert fit(*arguments) == 2
    assert "--trainer.default_root_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "optimizer",
    [
        ["torch.optim.RMSprop", "--model.optimizer.lr=1e-5"],
        ["torch.optim.SGD", "--model.optimizer.lr=1e-3", "--model.optimizer.momentum=0.9"],
        ["AdamW", "--model.optimizer.lr=1e-5", "--model.optimizer.weight_decay=0"],
    ],
)
def test_any_torch_optimizer_by_its_class(optimizer):
    cli = training_cli.TrainingCLI.run(
        ["fit", "--config", CONFIG, *SMALL, "--model.optimizer", *optimizer]
    )
    [used] = cli.trainer.optimizers
    assert type(used).__name__ == optimizer[0].rpartition(".")[2]
    for flag in optimizer[1:]:
        name, value = flag.removeprefix("--model.optimizer.").split("=")
        assert used.param_groups[0][name] == float(value)
    assert cli.trainer.global_step == 2


def test_sgd_has_no_momentum_and_no_weight_decay_unless_asked():
    cli = training_cli.TrainingCLI.run(["fit", "--config", CONFIG, *SMALL])
    [group] = cli.trainer.optimizers[0].param_groups
    assert (group["momentum"], group["weight_decay"]) == (0, 0)


def test_help_comes_from_docstrings(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "GRPO"])
    out = " ".join(capsys.readouterr().out.split())
    assert "the ratio is clipped below at 1 - clip_low" in out
    assert "passes over each rollout" in out, "a parent's argument lost its help"


def test_one_seed_reaches_module_and_data():
    cli = training_cli.TrainingCLI.run(["fit", "--config", CONFIG, *SMALL, "--seed_everything=7"])
    assert (cli.model.seed, cli.datamodule.seed) == (7, 7)


def test_fit_then_validate_the_exported_folder(tmp_path):
    """The whole way: train, export, and evaluate the export by its path."""
    out = tmp_path / "tuned"
    export = ["--trainer.callbacks+=HFExport", f"--trainer.callbacks.folder={out}"]
    assert fit(*export) == 0
    base, tuned = (load_file(folder / "model.safetensors") for folder in (EMBEDDED, out))
    assert base.keys() == tuned.keys()
    assert any(not torch.equal(base[name], tuned[name]) for name in base)
    small = [*SMALL, "--model.policy", str(out), "--trainer.default_root_dir", str(tmp_path)]
    assert main(["validate", "--config", CONFIG, *small]) == 0
    assert (tmp_path / "evaluation.json").exists()


def test_predict_writes_every_completion(tmp_path):
    logger = ["--trainer.callbacks", "[{class_path: CompletionLog}]"]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["predict", "--config", CONFIG, *SMALL, *logger, *root]) == 0
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 4
    assert all(record["prompt"].startswith("Calculate ") for record in records)


def test_non_finite_weights_on_disk_are_named(tmp_path, capsys):
    for file in EMBEDDED.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    name = sorted(weights)[0]
    weights[name][..., 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert fit("--model.policy", str(tmp_path)) == 3
    assert name in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(tmp_path, capsys):
    policy = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    policy.resize_token_embeddings(len(tokenizer) - 1)
    policy.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    assert fit("--model.policy", str(tmp_path / "small")) == 2
    error = capsys.readouterr().err
    assert "--model.policy" in error and str(len(tokenizer)) in error


def test_the_module_runs_as_a_script():
    assert cli.__name__ == "rlsgd.cli.main" and Path(cli.__file__).name == "main.py"


TEXT = ["--data=TextDataModule", "--data.path=configs", "--trainer.logger=false"]


@pytest.mark.parametrize(
    ("arguments", "given", "wanted"),
    [
        (["--config", CONFIG, "--model", "NextToken"], "PromptDataModule", "TextDataModule"),
        (["--model=GRPO", *TEXT], "TextDataModule", "PromptDataModule"),
        (["--model=SFT", *TEXT], "TextDataModule", "SolutionDataModule"),
        (["--config", CONFIG, "--model", "SFT"], "PromptDataModule", "SolutionDataModule"),
        (
            ["--config", "configs/sft_embedded.yaml", "--model", "GRPO"],
            "SolutionDataModule",
            "PromptDataModule",
        ),
    ],
)
def test_data_that_does_not_go_with_the_model_is_refused(arguments, given, wanted, capsys):
    assert main(["fit", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"--data {given} does not go with --model" in error and f"--data {wanted}" in error


def test_evaluation_takes_prompts_or_solutions_but_no_text(capsys):
    assert main(["validate", "--model=GRPO", *TEXT]) == 2
    assert "--data TextDataModule does not go with --model GRPO" in capsys.readouterr().err
    quiet = ["--trainer.logger=false", "--trainer.callbacks=[]", "--data.val_problems=4"]
    quiet += [SMALL[-1], "--trainer.accelerator=cpu"]
    assert main(["validate", "--config", CONFIG, "--model", "SFT", *quiet]) == 0


def test_the_policys_tokenizer_and_the_seed_reach_text(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path))
    prepare_small_text(tmp_path)
    arguments = ["validate", "--config", "configs/pretrain_small.yaml", "--seed_everything=5"]
    sizes = ["--data.sequence_length=16", "--trainer.logger=false", "--trainer.callbacks=[]"]
    run = training_cli.TrainingCLI.run([*arguments, *sizes, SMALL[-1]])
    assert run.datamodule.tokenizer_path == "small-text-llama"
    assert run.datamodule.seed == run.model.seed == 5
    loss = float(run.trainer.callback_metrics["val/loss"])
    vocabulary = len(run.datamodule.tokenizer)
    # random weights of this size know nothing: within a few percent of a uniform guess
    assert loss == pytest.approx(math.log(vocabulary), rel=0.05)
