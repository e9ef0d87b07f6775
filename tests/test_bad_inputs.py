"""What a user gets wrong is one line that names flag and fix; exit 2, and nothing is left."""

import os
import pickle
import re
from pathlib import Path

import lightning.pytorch  # noqa: F401  # here, so that its log does not write to a test's stderr
import pytest
from safetensors.torch import load_file, save_file

from rlsgd.cli.main import TRAINING, main
from rlsgd.models.loading import EMBEDDED

FIT = ["fit", "--config", "configs/grpo_embedded.yaml"]
ONE_CYCLE = ("--model.lr_scheduler.max_lr=1", "--model.lr_scheduler.total_steps=9")
CYCLE = ("--model.lr_scheduler.max_lr=1", "--model.lr_scheduler.base_lr=0.1")
ODD = "tests.rewards.odd_rewards"
LONG = "".join(
    f'{{"question": "{"1+" * (800 * (n == 3))}{n}", "answer": "{n}"}}\n' for n in range(30)
)
STUDY = ["study", "configs/studies/quickstart.yaml"]


def fit(*arguments: str) -> list[str]:
    return [*FIT, *arguments]


# command, and what its one line must say; {} is a folder with the files of `files` below
CASES = [
    # flags that are not there
    (fit("--trainer.max_epoch=2"), "--trainer.max_epoch: .* did you mean --trainer.max_epochs?"),
    (fit("--trainr.max_epochs=2"), "--trainr.max_epochs: .* did you mean --trainer.max_epochs?"),
    (fit("--modle.clip_low=0.2"), "--modle.clip_low: there is no such argument"),
    (fit("--nonsense", "3"), "--nonsense: there is no such argument; --help lists them"),
    (fit("--model.clip_lo=0.2"), "--model.clip_lo: GRPO has no argument .* mean clip_low?"),
    (fit("--model.tempratur=1"), "--model.tempratur: GRPO has no .* mean temperature?"),
    (fit("--model.polcy=x"), "--model.polcy: GRPO has no argument polcy; did you mean policy?"),
    (fit("--data.promts_per_epoch=4"), "--data.promts_per_epoch: PromptDataModule has no .*mean"),
    (fit("--data.task.nam=x"), "--data.task.nam: ReasoningGym has no argument .* mean name?"),
    (fit("--model.optimizer.learning_rate=1"), "--model.optimizer.learning_rate: SGD has no .*lr"),
    (
        fit("--trainer.callbacks+=UpdateSparsity", "--trainer.callbacks.toleranc=3"),
        "--trainer.callbacks.toleranc: UpdateSparsity has no .* did you mean tolerances?",
    ),
    (fit("--config={}/typo.yaml"), "--model.clip_lo: GRPO has no argument .* mean clip_low?"),
    (fit("--config={}/typo_trainer.yaml"), "--trainer.max_epoch: .* mean --trainer.max_epochs?"),
    # classes that are not there, or of another kind
    (fit("--model=GRPOO"), "--model GRPOO: there is no such class; did you mean GRPO?"),
    (fit("--model=torch.optim.SGD"), "--model torch.optim.SGD: is no PolicyModule; give"),
    (fit("--model.optimizer=torch.optim.Sgd"), "--model.optimizer torch.optim.Sgd: .* mean .*SGD?"),
    (fit("--model.optimizer=AdamWW"), "--model.optimizer AdamWW: there is .* did you mean AdamW?"),
    (fit("--model.lr_scheduler=torch.optim.lr_scheduler.StepL"), "--model.lr_scheduler .*StepLR?"),
    (fit("--model.sampler=HFSamplr"), "--model.sampler HFSamplr: .* did you mean HFSampler?"),
    (fit("--data=PromptDataModul"), "--data PromptDataModul: .* did you mean PromptDataModule?"),
    (fit("--data.task=ReasoningGm"), "--data.task ReasoningGm: .* did you mean ReasoningGym?"),
    (fit("--data.reward=ExactAnswr"), "--data.reward ExactAnswr: .* did you mean ExactAnswer?"),
    (
        fit("--data.reward=math.sqrt"),
        "--data.reward: sqrt takes 'x' by position only; arguments get their values by name",
    ),
    (fit("--data.reward=no_such_module.reward"), "--data.reward no_such_.*: there is no module"),
    (fit(f"--data.reward={ODD}.shorterr"), f".*{ODD} has no shorterr; did you mean {ODD}.shorter?"),
    (fit(f"--data.reward={ODD}.Unfinish"), f".* did you mean {ODD}.Unfinished?"),
    (fit(f"--data.reward={ODD}.Unfinished"), ".*: the class defines no score; write that method"),
    (fit(f"--data.reward={ODD}.Bare"), f"--data.reward {ODD}.Bare: is no Reward; give the class"),
    (
        fit("--data.reward=tests.rewards.odd_reward.shorter"),
        ".*: there is no module tests.rew",
    ),
    (fit(f"--data.reward={ODD}"), ".*: is a module; name a function in it.*later"),
    (
        fit("--data.reward=odd_rewards.py:shorter"),
        ".* dots; did you mean odd_rewards.shorter?",
    ),
    (fit("--data.reward={}/odd.shorter"), ".*: give module and function with dots"),
    (
        fit(f"--data.reward={ODD}.shorter", "--data.reward.weight=2"),
        "--data.reward.weight: a function takes no settings; derive a class from Reward",
    ),
    (
        fit("--data.reward=MathVerify", "--data.reward.strickt=1"),
        ".*; did you mean strict?",
    ),
    (fit(f"--data.reward={ODD}.later"), "--data.reward: later is a coroutine or a generator"),
    (fit(f"--data.reward={ODD}.one_by_one"), "--data.reward: one_by_one is a coroutine or a gener"),
    (
        fit(f"--data.reward={ODD}.blind"),
        "--data.reward: blind has no argument completion",
    ),
    (fit(f"--data.reward={ODD}.positions"), "--data.reward: positions has no argument completion"),
    (fit("--trainer.callbacks+=UpdateSparsty"), "--trainer.callbacks .* mean UpdateSparsity?"),
    (fit("--trainer.logger=TensorboardLogger"), "--trainer.logger .* did you mean TensorBoardLog"),
    (fit("--trainer.logger=CometLogger"), "--trainer.logger .*CometLogger: .*comet.*pip install"),
    # values of the optimizer and its scheduler
    (fit("--model.optimizer.lr=-1"), "--model.optimizer SGD: Invalid learning rate: -1.0"),
    (fit("--model.optimizer.lr=fast"), "--model.optimizer.lr fast: must be float"),
    (fit("--model.optimizer.momentum=-0.5"), "--model.optimizer SGD: Invalid momentum value: -0.5"),
    (fit("--model.optimizer=torch.optim.Muon", "--model.optimizer.lr=0.1"), ".*MuonWithAdamW"),
    (fit("--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"), ".*ExponentialLR"),
    (
        fit(
            "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
            "--model.lr_scheduler.monitor=val/accuracy",
        ),
        "--model.lr_scheduler ReduceLROnPlateau: waits for a metric",
    ),
    (fit("--model.lr_scheduler=StepLR"), "--model.lr_scheduler.step_size: is missing .StepLR"),
    (
        fit("--model.lr_scheduler=CosineAnnealingLR", "--model.lr_scheduler.T_max=0"),
        "--model.lr_scheduler CosineAnnealingLR: .*zero; change that argument",
    ),
    (fit("--model.optimizer=LBFGS", "--model.optimizer.lr=1"), "--model.optimizer LBFGS: it eval"),
    (fit("--model.optimizer=torch.optim.SparseAdam"), "--model.optimizer SparseAdam: it takes sp"),
    (
        fit("--model.lr_scheduler=OneCycleLR", *ONE_CYCLE),
        "--model.lr_scheduler OneCycleLR: it would cycle momentum into an .* has none; set --model",
    ),
    (
        fit("--model.lr_scheduler=CyclicLR", *CYCLE),
        "--model.lr_scheduler CyclicLR: it would cycle momentum into an optimizer that has none",
    ),
    (fit("--trainer.gradient_clip_val=0"), "--trainer.gradient_clip_val 0.*: it would clip noth"),
    # values of the trainer
    (fit("--trainer.accelerator=quantum"), "--trainer.accelerator quantum: "),
    (fit("--trainer.accelerator=tpu"), "--trainer.accelerator tpu: "),
    (fit("--trainer.devices=0"), "--trainer.devices 0: "),
    (fit("--trainer.devices=some"), "--trainer.devices some: "),
    (fit("--trainer.strategy=nonsense"), "--trainer.strategy nonsense: "),
    (fit("--trainer.precision=17-true"), "--trainer.precision 17-true: must be "),
    (fit("--trainer.max_epochs=-5"), "--trainer.max_epochs -5: must be at least 0, or -1"),
    (fit("--trainer.max_epochs=many"), "--trainer.max_epochs many: must be int"),
    (fit("--trainer.max_time=soon"), "--trainer.max_time soon: .*DD:HH:MM:SS"),
    (fit("--trainer.limit_val_batches=-1.5"), "--trainer.limit_val_batches -1.5: "),
    (fit("--trainer.gradient_clip_val=-1.5"), "--trainer.gradient_clip_val -1.5: must not be"),
    (fit("--trainer.gradient_clip_algorithm=median"), "--trainer.gradient_clip_algorithm median: "),
    (fit("--trainer.check_val_every_n_epoch=0"), "--trainer.check_val_every_n_epoch 0: must be at"),
    (fit("--trainer.num_nodes=0"), "--trainer.num_nodes 0: "),
    (fit("--trainer.profiler=fastest"), "--trainer.profiler fastest: "),
    (fit("--trainer.plugins=nonsense"), "--trainer.plugins nonsense: there is no such class"),
    (
        fit("--trainer.enable_progress_bar=perhaps"),
        "--trainer.enable_progress_bar perhaps: must be",
    ),
    (fit("--trainer.fast_dev_run=-1"), "--trainer.fast_dev_run -1: "),
    (fit("--trainer.val_check_interval=-3"), "--trainer.val_check_interval -3: "),
    (fit("--trainer.barebones=true"), "--trainer.barebones True: "),
    (fit("--trainer.accumulate_grad_batches=0"), "--trainer.accumulate_grad_batches 0: must be"),
    (fit("--trainer.default_root_dir=/proc/none"), "--trainer.default_root_dir /proc/none: cannot"),
    # values of data and model
    (
        fit(
            "--data.task=DatasetTask", "--data.task.path={}/long.jsonl", "--data.reward=MathVerify"
        ),
        "--data.max_prompt_tokens 1024: 1 of 26 train prompts are longer .the longest has",
    ),
    (fit("--data.prompts_per_epoch=0"), "--data.prompts_per_epoch must be at least 1; got 0"),
    (fit("--data.group_size=1"), "--data.group_size 1: GRPO compares .*; use at least 2"),
    (fit("--data.val_problems=-1"), "--data.val_problems must not be negative; got -1"),
    (fit("--data.task.name=chain_sums"), "--data.task.name.* did you mean chain_sum"),
    (fit("--data.task=DatasetTask"), "--data.task.path: is missing .DatasetTask"),
    (
        fit("--data.task=DatasetTask", "--data.task.path=/no/such.jsonl"),
        "--data.task.path: there is no file or folder",
    ),
    (fit("--model.policy=/no/such/folder"), "--model.policy /no/such/folder: no such folder"),
    (fit("--model.policy=no/such"), "--model.policy no/such: no such folder, .*cache of the hub"),
    (fit("--model.policy=configs/hf"), "--model.policy configs/hf: there is no such folder"),
    (fit("--model.policy={}/pickled"), "--model.policy .*pickled: .*save them as safetensors"),
    (fit("--model.policy={}/shapes"), "--model.policy .*shapes: .*"),
    (fit("--model.policy={}/quantized"), "--model.policy .*quantized: "),
    (
        fit("--model.policy={}/raises"),
        "--data.chat_template: the template refuses .*: TemplateError: no such",
    ),
    (fit("--model.max_completion_tokens=many"), "--model.max_completion_tokens many: must be int"),
    (fit("--model.weight_rounding=up"), "--model.weight_rounding up: must be .*nearest"),
    # files
    (fit("--config=configs/none_such.yaml"), "--config.*none_such.yaml: there is no such file and"),
    (
        fit("--config=configs/rloo_embeded.yaml"),
        "--config .* did you mean configs/rloo_embedded.yaml",
    ),
    (fit("--config=rlo_embedded"), "--config rlo_embedded: .* did you mean rloo_embedded"),
    (fit("--config={}/includes.yaml"), "--config .*includes.yaml: it includes none, .*recipe"),
    (fit("--config={}/broken.yaml"), "--config.*"),
    (fit("--config={}/list.yaml"), "--config.*"),
    (fit("--ckpt_path=/no/such.ckpt"), "--ckpt_path /no/such.ckpt: there is no such checkpoint"),
    (fit("--ckpt_path={}/hostile.ckpt"), "--ckpt_path .*hostile.ckpt"),
    (fit("--ckpt_path={}/text.ckpt"), "--ckpt_path .*text.ckpt is damaged"),
    (["validate", *FIT[1:], "--ckpt_path=/no.ckpt"], "--ckpt_path /no.ckpt: there is no such"),
    (["test", *FIT[1:], "--data.val_problems=0"], "--data.val_problems is 0, which leaves nothing"),
    (["predict", *FIT[1:], "--model.policy=/no/such"], "--model.policy /no/such: no such folder"),
    # other commands
    (["fit"], "--data, --model: is missing"),
    (["fitt"], "fitt: there is no such command; did you mean fit?"),
    (["study"], "CONFIG: is missing"),
    (["study", "none.yaml"], "CONFIG none.yaml: there is no such file and no such recipe"),
    (["study", "quikstart"], "CONFIG quikstart: there is no .* did you mean studies/quickstart"),
    ([*STUDY, "--overlay=trainer/gpuu"], "--overlay trainer/gpuu: .* did you mean trainer/gpu?"),
    (["recipes", "copy", "rloo_embeded"], "NAME rloo_embeded: .* did you mean rloo_embedded"),
    (["recipes", "copy", "gpu", "pyproject.toml"], "TARGET pyproject.toml: exists already; name"),
    (["recipes", "copy", "mkdocs.yml"], "NAME mkdocs.yml: is a file of yours"),
    (["recipes", "cp"], ".*cp: there is no such choice"),
    (["rates", "--config=grpo_embedded", "--pilots=3"], "--pilots 3: an even number from 4"),
    (
        ["rates", "--config=grpo_embedded", "--optimizer=torch.optim.Sgd"],
        "--optimizer torch.optim.Sgd: no such class; write a class path",
    ),
    (["rates", "--config=grpo_embedded", "--pilots=x"], "--pilots: invalid int value: 'x'"),
    (["rates", "--config=grpo_embeded"], "--config grpo_embeded: .* did you mean grpo_embedded"),
    ([*STUDY, "--jbos=3"], "--jbos: there is no such argument; did you mean --jobs?"),
    ([*STUDY, "--jobs=x"], "--jobs x: must be int"),
    (["analyze", "embedded"], "TUNED: is missing"),
    (["analyze", "embedded", "/no/such"], "TUNED /no/such: no such folder"),
    (["analyze", "embedded", "embedded", "--rank_kk=3"], "--rank_kk: .* did you mean --rank.k?"),
    (["delta", "pak", "a", "b"], "COMMAND pak: there is no such choice; did you mean pack?"),
    (["delta", "inspect", "/no/such.safetensors"], ".*/no/such.safetensors"),
    (["delta", "inspect", "{}/text.ckpt"], ".*text.ckpt is not a delta"),
    (["memory"], "--model: is missing"),
    (["memory", "--model=/no/such"], "--model /no/such: no such folder"),
    (["memory", "--model={}/mamba"], "--model .*mamba: "),
    (["memory", "--model=embedded", "--optimizer=torch.optim.SDG"], "--optimizer torch.optim.SDG"),
    (["memory", "--model=embedded", "--gpu_memory=80"], "--gpu_memory 80: write a number"),
    (["report", "/no/such"], "RUN /no/such is no folder"),
    (["report", "docs", "--prompts=-2"], "--prompts -2 must be from 0 to 100"),
    (["data", "prepar"], "COMMAND prepar: there is no such choice; did you mean prepare?"),
    (["data", "prepare", "no-such-set"], "NAME no-such-set is no data set"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Configs with a typo, models that cannot be loaded, files that are no checkpoints."""
    folder = tmp_path_factory.mktemp("bad")
    for name, text in {
        "typo.yaml": "model:\n  class_path: GRPO\n  init_args:\n    clip_lo: 0.2\n",
        "typo_trainer.yaml": "trainer:\n  max_epoch: 2\n",
        "broken.yaml": "model: [unclosed\ntrainer: {",
        "list.yaml": "- 1\n- 2\n",
        "includes.yaml": "include: none\n",
        "text.ckpt": "no checkpoint",
        "long.jsonl": LONG,
    }.items():
        (folder / name).write_text(text)
    (folder / "hostile.ckpt").write_bytes(pickle.dumps(os.getcwd))
    for name in ("pickled", "shapes", "quantized", "raises"):
        (folder / name).mkdir()
        for file in EMBEDDED.iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
    (folder / "pickled/model.safetensors").rename(folder / "pickled/pytorch_model.bin")
    weights = load_file(folder / "shapes/model.safetensors")
    name = next(name for name, weight in sorted(weights.items()) if weight.ndim == 2)
    cut = {**weights, name: weights[name][:, :-1].contiguous()}
    save_file(cut, folder / "shapes/model.safetensors", metadata={"format": "pt"})
    config = folder / "quantized/config.json"
    quantized = '{"quantization_config": {"quant_method": "awq", "bits": 4}, '
    config.write_text(config.read_text().replace("{", quantized, 1))
    (folder / "raises/chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    (folder / "mamba").mkdir()
    (folder / "mamba/config.json").write_text('{"model_type": "mamba"}')
    return folder


@pytest.mark.parametrize(("argv", "expected"), CASES, ids=[" ".join(c[0][-2:]) for c in CASES])
def test_one_line_and_nothing_left(argv, expected, files, tmp_path, capfd, monkeypatch):
    argv = [word.replace("{}", str(files)) for word in argv]
    run = tmp_path / "run"
    if len(argv) > 1 and argv[0] in TRAINING and "default_root" not in " ".join(argv):
        argv.append(f"--trainer.default_root_dir={run}")
    monkeypatch.setattr("rlsgd.rollout.sampler.HFSampler.sample", None)  # nothing may be sampled
    assert main(argv) == 2
    said = capfd.readouterr()
    lines = [line for line in said.err.splitlines() if "error: " in line]
    assert len(lines) == 1 and "Traceback" not in said.err
    assert re.match(rf"rlsgd( \w+)?: error: {re.sub(r'[?]$', '[?]', expected)}", lines[0]), lines[0]
    assert len(lines[0]) < 700
    assert not run.exists()


def test_the_traceback_is_shown_when_it_is_asked_for(tmp_path, capsys, monkeypatch):
    argv = fit("--model.optimizer.lr=-1", f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert main([*argv, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert os.environ.get("RLSGD_DEBUG") is None


def test_a_fault_of_ours_keeps_its_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlsgd.cli.training.check_data", lambda *_, **__: {}["no such key"])
    assert main(fit(f"--trainer.default_root_dir={tmp_path / 'run'}")) == 1
    error = capsys.readouterr().err
    assert "KeyError" in error and "please report" in error
