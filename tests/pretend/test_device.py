"""Every kind of training on a pretend device, which raises where devices mix and counts waits."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pretend.device import NAME

CONFIGS = "configs/{}.yaml"
COMMON = [
    *("--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.callbacks=null"),
    *("--data.val_problems=4", "--seed_everything=0"),
]
SAMPLED = ["--data.prompts_per_epoch=4", "--data.group_size=4", "--model.temperature=1.5"]
TOKENS = 24  # two blocks of generate


def fit(config: str, *arguments: str, sampled: bool = True) -> list[str]:
    config = CONFIGS.format(config if config.startswith("ppo") else f"{config}_embedded")
    more = SAMPLED if sampled else []
    return ["fit", "--config", config, *COMMON, *more, *arguments]


def optimizer(name: str, **arguments: object) -> str:
    module = "torch.optim" if name in ("SGD", "AdamW") else "rlsgd.optimizers"
    return "--model.optimizer=" + json.dumps(
        {"class_path": f"{module}.{name}", "init_args": arguments}
    )


REPORTING = ["--model.sampler=rlsgd.rollout.HFSampler", "--model.sampler.report_logprobs=true"]
CALLBACKS = [
    *("CallbackTime", "CompletionLog", "EffectiveRank", "EvaluationReport", "Memory"),
    *("IterationProgress", "OptimizerDynamics", "StepVisibility", "UpdateSparsity"),
    *("DeltaCheckpoint", "HFExport"),
]
UNCLIPPED = "--trainer.gradient_clip_val=null"
AUTOCAST = [
    "--trainer.plugins=lightning.pytorch.plugins.MixedPrecision",
    *("--trainer.plugins.precision=bf16-mixed", "--trainer.plugins.device=pretend"),
]
TEXT = [
    *("--model=NextToken", "--model.policy=embedded", "--data=TextDataModule"),
    *("--data.sequence_length=16", "--data.batch_size=4", "--data.batches_per_epoch=2"),
    *("--trainer.max_epochs=2", "--data.val_blocks=4", "--trainer.enable_progress_bar=false"),
]
SAVING = [
    *("--trainer.enable_checkpointing=true", optimizer("AdamW", lr=1e-3)),
    *("--model.share_prompts=true", "--model.minibatches=2"),
]
# {NAME} is the folder of another run
RUNS = {
    "sgd": fit("grpo", f"--model.max_completion_tokens={TOKENS}"),
    "saved": fit("grpo", *SAVING),
    "bf16-mixed, kl, entropy": fit(
        "cispo", *AUTOCAST, "--model.kl_coef=0.1", "--model.entropy_coef=0.1"
    ),
    "accumulation, correction": fit(
        "dapo", *REPORTING, "--model.correction=token-mask", "--trainer.accumulate_grad_batches=4"
    ),
    "fused": fit("grpo", optimizer("FusedBackwardSGD", lr=1e-2), UNCLIPPED),
    "sgd-ll, nearest": fit(
        "reinforce", optimizer("SGDLL", lr=1e-2), UNCLIPPED, "--model.weight_rounding=nearest"
    ),
    "muon": fit("rloo", optimizer("MuonWithAdamW", lr=1e-3)),
    "sign, top entropy": fit(
        "reinforce_plus_plus", optimizer("SignSGD", lr=1e-4), "--model.top_entropy_fraction=0.5"
    ),
    "gspo, recomputed": fit("gspo", "--model.activation_checkpointing=true"),
    "ppo": fit("ppo_embedded_sgd_adamw"),
    "ppo, one backbone": fit("ppo_embedded_sgd_adamw", "--model.shared_backbone=true"),
    "sft": fit("sft", "--data.batches_per_epoch=2", "--data.batch_size=4", sampled=False),
    "next token": ["fit", *TEXT, "--data.path={text.txt}", "--data.txt_unit=paragraph"],
    "callbacks": fit("dr_grpo", f"--trainer.callbacks={json.dumps(CALLBACKS)}"),
    "test": [
        "test",
        "--config",
        CONFIGS.format("grpo_embedded"),
        "--model.eval_samples=2",
        *COMMON[1:],
    ],
}
# optimizer steps: two iterations of one or two minibatches, PPO's of policy and critic
STEPS = {"sgd": 2, "saved": 4, "bf16-mixed, kl, entropy": 4, "muon": 2, "ppo": 4}


class Runs:
    """Results of runs, made when they are first asked for, by a process that is not the tests'."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, {}
        sums = (f"{a}+{b}={a + b}\n\n" for a in range(30) for b in range(10))
        (folder / "text.txt").write_text("".join(sums))
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", "tests.pretend.run"]
        self.worker = subprocess.Popen(command, **pipe, env=os.environ | {"RLSGD_DEBUG": "1"})

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self.results:
            self.results[name] = self.ask(name)
        return self.results[name]

    def ask(self, name: str) -> dict[str, Any]:
        arguments = [name]
        if name in RUNS:
            arguments = [self.placed(argument) for argument in RUNS[name]]
            arguments.append(f"--trainer.default_root_dir={self.folder / name}")
        assert self.worker.stdin is not None and self.worker.stdout is not None
        print(json.dumps(arguments), file=self.worker.stdin, flush=True)
        return json.loads(self.worker.stdout.readline())

    def placed(self, argument: str) -> str:
        return re.sub(r"=\{([\w.]+)\}$", rf"={self.folder}/\1", argument)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("pretend"))
    yield runs
    runs.worker.communicate()


@pytest.mark.parametrize("name", RUNS)
def test_devices_never_mix(results: Runs, name: str):
    assert results[name]["code"] == 0, results[name]["printed"][-3000:]


def test_weights_are_compared_and_sent_on_the_device(results: Runs):
    found = results["weight sync"]
    assert found["changed"] == [1, 1] and found["devices"] == [NAME]
    assert found["waits"] <= 2 * 6, "a count, and a patch's positions and values, of each update"


def waits(result: dict[str, Any], phase: str) -> int:
    return sum(result["waits"].get(phase, {}).values())


def test_one_wait_for_a_block_of_tokens(results: Runs):
    """Two rollouts, and the evaluations before and after training, of 24 tokens in two blocks."""
    number = waits(results["sgd"], "tokens")
    assert 2 < number <= 2 * 4, results["sgd"]["waits"]["tokens"]


@pytest.mark.parametrize("name", STEPS)
def test_at_most_ten_waits_for_a_step(results: Runs, name: str):
    """With all that is logged of it, and the end of its iteration."""
    number = waits(results[name], "update")
    assert 2 * STEPS[name] <= number <= 10 * STEPS[name], results[name]["waits"]["update"]


def test_what_mixes_devices_is_refused(results: Runs):
    found = results["mixed"]
    assert found["sum"] == found["matmul"] == "tensors on two devices"
    assert found["waits"] == {"float": 1, "to it": 1, "to it, without waiting": 0, "mask": 1}
