"""rlsgd's instruments and optimizers in the real TRL, on the embedded model."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from rlsgd.cli.main import main
from rlsgd.integrations.trl import UpdateMetrics, check_model
from rlsgd.models.loading import EMBEDDED
from rlsgd.optimizers import SGDLL, FusedBackwardSGD
from rlsgd.optimizers.roles import mark_roles

SUMS = [f"{a} + {b} =" for a, b in ((31, 45), (62, 17), (50, 26), (83, 14))]
COMMON = {
    "max_steps": 3,
    "save_steps": 1,
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


class Reported(TrainerCallback):
    """What a reporter such as W&B's is handed."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs, **_):
        self.logs.append((state.global_step, dict(logs)))


def odd_lengths(completions, **_):
    """Some reward that differs within groups."""
    return [float(len(text) % 2) for text in completions]


def grpo(folder: Path, model=EMBEDDED, **more) -> GRPOTrainer:
    trainer_arguments = {key: more.pop(key) for key in ("optimizers",) if key in more}
    settings = {"num_generations": 4, "max_completion_length": 6} | COMMON | more
    return GRPOTrainer(
        model=str(model) if isinstance(model, Path) else model,
        reward_funcs=odd_lengths,
        args=GRPOConfig(output_dir=str(folder), **settings),
        train_dataset=Dataset.from_list([{"prompt": question} for question in SUMS]),
        processing_class=AutoTokenizer.from_pretrained(EMBEDDED),
        **trainer_arguments,
    )


def sft(folder: Path) -> SFTTrainer:
    rows = [{"text": f"{question} {eval(question[:-1])}"} for question in SUMS]
    return SFTTrainer(
        model=str(EMBEDDED),
        args=SFTConfig(output_dir=str(folder), **COMMON),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(EMBEDDED),
    )


@pytest.mark.parametrize("make", [grpo, sft])
def test_the_numbers_are_those_of_analyze_on_its_checkpoints(make, tmp_path, capsys):
    trainer = make(tmp_path)
    reported = Reported()
    trainer.add_callback(UpdateMetrics(trainer, every_n_steps=2))
    trainer.add_callback(reported)
    trainer.train()
    own = [(step, logs) for step, logs in reported.logs if "update/unchanged_bf16" in logs]
    assert [step for step, _ in own] == [2, 3], "every second step, and the last"
    capsys.readouterr()
    saved = [str(tmp_path / f"checkpoint-{step}") for step, _ in own]
    assert main(["analyze", "embedded", *saved, "--json"]) == 0
    for (_, logs), found in zip(own, json.loads(capsys.readouterr().out)["tuned"], strict=True):
        total = {f"update/{name}": value for name, value in found["total"].items()}
        shared = total.keys() & logs.keys()
        assert {"update/unchanged_fp32", "update/unchanged_bf16", "update/within_1e-5"} <= shared
        assert {"update/effective_rank", "update/effective_rank_percent"} <= shared
        sums = {"update/displacement", "update/relative_displacement"}  # in another order
        for key in shared:
            assert logs[key] == pytest.approx(total[key], rel=1e-14 if key in sums else 0, abs=0)
        assert 0 < logs["update/unchanged_bf16"] < 1
        weights = sum(w.numel() for w in load_file(EMBEDDED / "model.safetensors").values())
        assert logs["memory/parameter_bytes"] == logs["memory/gradient_bytes"] == 4 * weights
        assert logs["memory/optimizer_state_bytes"] == 0
    # TRL's own record of each step is as it was
    others = [logs for _, logs in reported.logs if "update/unchanged_bf16" not in logs]
    key = "reward" if make is grpo else "mean_token_accuracy"
    assert sum(key in logs for logs in others) == 3
    assert not (tmp_path / "starting_weights").exists(), "the model's folder holds them"


def test_a_run_that_goes_on_is_measured_from_its_start(tmp_path):
    whole, parts = Reported(), Reported()
    for folder, reported, steps in (("a", whole, [2]), ("b", parts, [1, 2])):
        for last in steps:
            trainer = grpo(tmp_path / folder, max_steps=last)
            trainer.add_callback(UpdateMetrics(trainer, effective_rank=False))
            trainer.add_callback(reported)
            trainer.train(resume_from_checkpoint=last != steps[0])
    found = [
        [logs["update/unchanged_bf16"] for _, logs in one.logs if "update/unchanged_bf16" in logs]
        for one in (whole, parts)
    ]
    assert len(found[0]) == 2 and found[0] == found[1]


def test_a_model_without_a_folder_is_copied_at_the_start(tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1  # not what the folder has
    trainer = grpo(tmp_path / "run", model, max_steps=1, learning_rate=0.0)
    callback, reported = UpdateMetrics(trainer), Reported()
    trainer.add_callback(callback)
    trainer.add_callback(reported)
    trainer.train()
    [logs] = [logs for _, logs in reported.logs if "update/unchanged_fp32" in logs]
    assert logs["update/unchanged_fp32"] == 1.0
    assert list((tmp_path / "run/starting_weights").glob("*.safetensors"))


def test_sgd_ll_finds_the_head_by_name_and_by_role_and_bounds_every_step(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    tied = model.config.tie_word_embeddings
    if tied:
        with pytest.raises(ValueError, match=r"none of the parameters is a language model head"):
            SGDLL(model.named_parameters(), lr=100.0)
        mark_roles(model)
    optimizer = SGDLL(model.named_parameters(), lr=100.0, head_row_clip=1e-3)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = grpo(tmp_path, model, max_steps=1, optimizers=(optimizer, None))
    reported = Reported()
    trainer.add_callback(UpdateMetrics(trainer, effective_rank=False))
    trainer.add_callback(reported)
    trainer.train()
    steps = [(w - before[n]).square().mean().sqrt() for n, w in model.named_parameters()]
    assert 0 < max(steps) <= 5e-4 * (1 + 1e-3), "update_rms_clip, but for rounding of the weights"
    assert 0 < optimizer.step_metrics["head_rows_clipped_fraction"] < 1
    [logs] = [logs for _, logs in reported.logs if "memory/optimizer_state_bytes" in logs]
    assert logs["memory/optimizer_state_bytes"] == logs["memory/parameter_bytes"]
    assert logs["memory/closed_form_bytes"] == 2 * logs["memory/parameter_bytes"]


def test_sgd_ll_finds_an_untied_head_by_its_name():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.lm_head = nn.Linear(2, 2), nn.Linear(2, 3, bias=False)

    model = Model()
    optimizer = SGDLL(model.named_parameters(), lr=1.0, head_row_clip=0.5, momentum=0.0)
    start = model.lm_head.weight.detach().clone()
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.0], [0.0, 0.0]])
    model.lm_head.weight.grad = gradient.clone()
    optimizer.param_groups[0]["update_rms_clip"] = None
    optimizer.step()
    clipped = torch.tensor([[0.3, 0.4], [0.3, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(start - model.lm_head.weight.detach(), clipped)
    with pytest.raises(ValueError, match=r"^weight_decay 0\.1 of .*: SGDLL has none"):
        SGDLL([{"params": [model.lm_head.weight], "weight_decay": 0.1}], lr=1.0)


@pytest.mark.parametrize("instrumented", [True, False])
def test_fused_backward_sgd_is_refused_by_name_before_a_weight_changes(instrumented, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = FusedBackwardSGD(model.parameters(), lr=1e-2)
    trainer = grpo(tmp_path, model, optimizers=(optimizer, None))
    if instrumented:
        trainer.add_callback(UpdateMetrics(trainer))
    with pytest.raises((ValueError, RuntimeError), match=r"^FusedBackwardSGD steps .*torch\.optim"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_models_whose_weights_are_elsewhere_are_refused():
    model = nn.Linear(1, 1)
    model.peft_config = SimpleNamespace()  # pyright: ignore
    with pytest.raises(ValueError, match=r"has adapters"):
        check_model(model)
    model = nn.Linear(1, 1)
    model.weight.ds_id = 0  # pyright: ignore
    with pytest.raises(ValueError, match=r"ZeRO-3"):
        check_model(model)


def test_verl_builds_sign_sgd_by_its_import_path():
    from verl.workers.config.optimizer import FSDPOptimizerConfig, build_optimizer

    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    path = {"optimizer_impl": "rlsgd.optimizers", "optimizer": "SignSGD"}
    optimizer = build_optimizer([weight], FSDPOptimizerConfig(lr=0.5, weight_decay=0.0, **path))
    weight.grad = torch.tensor([3.0, -1.0])
    optimizer.step()
    assert type(optimizer).__module__.startswith("rlsgd.") and weight.tolist() == [0.5, -1.5]


def test_the_page_shows_a_closure_that_steps():
    page = Path("docs/trl.md").read_text()
    code = page[page.index("import torch\n\nfrom rlsgd.optimizers import FusedBackwardSGD") :]
    names: dict = {}
    torch.manual_seed(0)
    exec(code.partition("```")[0], names)
    stepped = names["model"].weight.detach()
    torch.manual_seed(0)
    fresh = nn.Linear(4, 1)
    fresh(torch.ones(4)).square().sum().backward()
    torch.optim.SGD(fresh.parameters(), lr=0.1).step()
    assert torch.equal(stepped, fresh.weight)
