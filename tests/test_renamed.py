"""Names of 0.1 still work, and say what they are now."""

import importlib
import sys
import warnings

import pytest
import yaml

from rlsgd.cli.training import TrainingCLI
from rlsgd.core.renamed import RENAMED

# class paths that a config of 0.1 may hold, and the class of today
OLD_PATHS = {
    "rlsgd.strategy.FSDP2Strategy": "rlsgd.models.strategy.FSDP2Strategy",
    "rlsgd.schedulers.WarmupCosine": "rlsgd.optimizers.schedulers.WarmupCosine",
    "rlsgd.rollout.vllm_sampler.VLLMSampler": "rlsgd.rollout.VLLMSampler",
    "rlsgd.rollout.vllm_worker.WeightReceiver": "rlsgd.rollout.vllm.worker.WeightReceiver",
    "rlsgd.rewards.sandbox.Bubblewrap": "rlsgd.rewards.sandbox.base.Bubblewrap",
    "rlsgd.rewards.sandbox_landlock.Landlock": "rlsgd.rewards.sandbox.landlock.Landlock",
    "rlsgd.rewards.sandbox_container.Container": "rlsgd.rewards.sandbox.container.Container",
    "rlsgd.models.load_policy": "rlsgd.models.loading.load_policy",
}


def resolve(path: str):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture(autouse=True)
def forget_old_modules(monkeypatch):
    """So that each is imported, and warns, anew."""
    for old in RENAMED:
        monkeypatch.delitem(sys.modules, old, raising=False)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_module_is_the_module_of_today_and_warns(old):
    with pytest.warns(FutureWarning, match=f"{old} is now {RENAMED[old]}; the old name goes"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(RENAMED[old])
    assert module.__spec__ is not None and module.__spec__.name == RENAMED[old]


@pytest.mark.parametrize("old", OLD_PATHS)
def test_an_old_class_path_is_the_class_of_today_and_warns(old):
    with pytest.warns(FutureWarning, match="is now rlsgd"):
        found = resolve(old)
    assert found is resolve(OLD_PATHS[old])


def test_a_name_of_today_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in OLD_PATHS.values():
            resolve(path)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        resolve("rlsgd.models.no_such_name")


def parsed(capsys, tmp_path, settings) -> dict:
    """What `rlsgd fit` makes of a config."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit):
        TrainingCLI.run(["fit", "--config", str(tmp_path / "config.yaml"), "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_a_config_of_0_1_parses_to_the_settings_of_today(tmp_path, capsys):
    def settings(strategy: str, schedule: str) -> dict:
        init = {"policy": "small-text-llama", "random_weights": True}
        init["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
        lengths = {"warmup_steps": 3, "total_steps": 30}
        init["lr_scheduler"] = {"class_path": schedule, "init_args": lengths}
        return {
            "model": {"class_path": "NextToken", "init_args": init},
            "data": {"class_path": "TextDataModule", "init_args": {"path": "shakespeare"}},
            "trainer": {"strategy": {"class_path": strategy}, "logger": False},
        }

    old = list(OLD_PATHS)[:2]
    with pytest.warns(FutureWarning, match="is now rlsgd"):
        before = parsed(capsys, tmp_path, settings(*old))
    today = parsed(capsys, tmp_path, settings(*(OLD_PATHS[path] for path in old)))
    assert before["model"]["init_args"]["lr_scheduler"]["init_args"]["total_steps"] == 30
    strategy = before["trainer"]["strategy"]
    assert strategy["class_path"].endswith(".FSDP2Strategy")

    def shortened(value):
        """Class paths without their module, which is the old one in the old config."""
        if isinstance(value, dict):
            return {
                k: v.rpartition(".")[2] if k == "class_path" else shortened(v)
                for k, v in value.items()
            }
        return [shortened(one) for one in value] if isinstance(value, list) else value

    assert shortened(before) == shortened(today)
