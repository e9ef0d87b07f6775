import subprocess
import sys
from typing import get_args

import pytest
import yaml

from rlsgd.study.arms import Precision, load_study
from rlsgd.study.expansion import PRECISIONS, expand_runs

SGD = {"name": "sgd", "optimizer": "torch.optim.SGD", "learning_rate": 0.1}


def test_the_overlay_of_a_run_by_value(write_study, tmp_path):
    arm = SGD | {
        "optimizer_args": {"momentum": 0.9},
        "precision": "master",
        "overrides": {"trainer.max_epochs": 5, "data.init_args": {"prompts": 4}},
    }
    overrides = {"trainer.max_epochs": 60, "data.init_args.group_size": 8}
    (run,) = expand_runs(load_study(write_study(arms=[arm], seeds=[3], overrides=overrides)))
    folder = str(tmp_path / "out" / "sgd" / "seed-3")
    place = {"save_dir": folder, "name": "", "version": ""}
    assert run.overlay == {
        "seed_everything": 3,
        "data": {"init_args": {"group_size": 8, "prompts": 4}},
        "model": {
            "init_args": {
                "optimizer": {
                    "class_path": "torch.optim.SGD",
                    "init_args": {"lr": 0.1, "momentum": 0.9},
                },
                "weight_rounding": None,
            }
        },
        "trainer": {
            "max_epochs": 5,
            "default_root_dir": folder,
            "precision": "bf16-mixed",
            "logger": [
                {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    "init_args": place,
                },
                {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": place | {"flush_logs_every_n_steps": 1},
                },
            ],
        },
    }
    assert (str(run.folder), run.max_epochs) == (folder, 5)


STRATEGY = {
    "class_path": "rlsgd.models.strategy.FSDP2Strategy",
    "init_args": {"save_distributed_checkpoint": True},
}
WRITTEN = {
    "trainer.strategy": STRATEGY,
    "trainer.callbacks": [{"class_path": "rlsgd.callbacks.Memory"}, {"class_path": "Memory"}],
    "model.init_args.sampler": {"class_path": "rlsgd.rollout.HFSampler"},
    "data.init_args.prompt_suffix": "1",
    "data.init_args.sections": {"yes": "true", "none": "null", "rate": 1e-3},
}


def test_settings_of_a_run_reach_its_overlay_as_they_were_written(write_study):
    """Not as objects of the classes they name, with defaults put in, nor as other types."""
    arm = SGD | {"overrides": WRITTEN, "optimizer_args": {"inner": STRATEGY, "name": "3"}}
    evaluation = {"name": "long", "overrides": WRITTEN}
    path = write_study(arms=[arm], seeds=[0], overrides=WRITTEN, evaluations=[evaluation])
    study = load_study(path)
    assert study.overrides == study.arms[0].overrides == study.evaluations[0].overrides == WRITTEN
    overlay = expand_runs(study)[0].overlay
    optimizer = overlay["model"]["init_args"].pop("optimizer")
    assert optimizer["init_args"] == {"lr": 0.1, "inner": STRATEGY, "name": "3"}
    assert overlay["trainer"]["strategy"] == STRATEGY
    assert overlay["trainer"]["callbacks"] == WRITTEN["trainer.callbacks"]
    assert overlay["model"]["init_args"]["sampler"] == WRITTEN["model.init_args.sampler"]
    assert overlay["data"]["init_args"]["sections"] == WRITTEN["data.init_args.sections"]
    assert overlay["data"]["init_args"]["prompt_suffix"] == "1"
    assert yaml.safe_load(yaml.safe_dump(overlay)) == overlay


def test_loading_a_study_imports_no_class_that_it_names(write_study):
    path = write_study(overrides={"trainer.strategy": STRATEGY})
    code = (
        "import sys, pathlib; from rlsgd.study.arms import load_study;"
        "load_study(pathlib.Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_a_component_replaces_one_of_another_class_and_changes_one_of_its_own(write_study):
    def strategy(**own):
        study = load_study(
            write_study(
                arms=[SGD | {"overrides": {"trainer.strategy": own}}],
                overrides={"trainer.strategy": STRATEGY},
            )
        )
        return expand_runs(study)[0].overlay["trainer"]["strategy"]

    other = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"a": 1}}
    assert strategy(**other) == other
    more = {"class_path": STRATEGY["class_path"], "init_args": {"cpu_offload": False}}
    both = {"save_distributed_checkpoint": True, "cpu_offload": False}
    assert strategy(**more) == STRATEGY | {"init_args": both}
    assert strategy(init_args={"cpu_offload": False}) == STRATEGY | {"init_args": both}


def test_overlays_come_between_the_overrides_of_study_and_arm(write_study, tmp_path, monkeypatch):
    def write(name, **model):
        (tmp_path / name).write_text(yaml.safe_dump({"model": {"init_args": model}}))
        return name

    own = write("own.yaml", a="own", b="own", c="own", d="own")
    given = write("given.yaml", b="given", c="given")
    path = write_study(
        arms=[SGD | {"overrides": {"model.init_args.c": "arm"}}],
        seeds=[0],
        overrides={"model.init_args": {"a": "study", "e": "study"}},
        overlays=[own],
    )
    monkeypatch.chdir(tmp_path)
    study = load_study(path, overlays=[given])
    assert study.overlays == [str(tmp_path / own), str(tmp_path / given)]
    (run,) = expand_runs(study)
    model = run.overlay["model"]["init_args"]
    wanted = {"a": "own", "b": "given", "c": "arm", "d": "own", "e": "study"}
    assert {name: model[name] for name in wanted} == wanted
    write("given.yaml", b="changed")
    assert expand_runs(study)[0].fingerprint != run.fingerprint


def test_overlays_that_cannot_be_used_are_refused(write_study, tmp_path):
    with pytest.raises(ValueError, match=r"^--overlay absent\.yaml: there is no such file"):
        load_study(write_study(), overlays=["absent.yaml"])
    with pytest.raises(ValueError, match=r"config 'absent\.yaml' does not exist"):
        load_study(write_study(overlays=["absent.yaml"]))
    (tmp_path / "gpu.yaml").write_text("trainer: {precision: bf16-mixed}\n")
    with pytest.raises(ValueError, match=r"overlay .*gpu\.yaml: trainer .* use arms\.precision"):
        expand_runs(load_study(write_study(overlays=["gpu.yaml"])))
    (tmp_path / "list.yaml").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"list\.yaml: must hold a mapping"):
        expand_runs(load_study(write_study(overlays=["list.yaml"])))


def test_precision_regimes_by_value(write_study):
    regimes = {
        "fp32": ("32-true", None),
        "master": ("bf16-mixed", None),
        "bf16": ("bf16-true", None),
        "bf16-nearest": ("32-true", "nearest"),
        "bf16-stochastic": ("32-true", "stochastic"),
    }
    arms = [SGD | {"name": precision, "precision": precision} for precision in regimes]
    runs = expand_runs(load_study(write_study(arms=arms, seeds=[0])))
    for run, regime in zip(runs, regimes.values(), strict=True):
        model = run.overlay["model"]["init_args"]
        assert (run.overlay["trainer"]["precision"], model["weight_rounding"]) == regime
    assert [run.max_epochs for run in runs] == [2] * 5  # from the base config
    assert set(get_args(Precision)) == set(PRECISIONS) == set(regimes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.precision": "16-true"}, "trainer.precision, which the study sets"),
        (
            {"model.init_args.weight_rounding": "nearest"},
            "model.init_args.weight_rounding, which the study sets: use arms.precision",
        ),
        ({"trainer": {"logger": False}}, "trainer.logger, which the study sets"),
        ({"trainer.logger+": []}, "trainer.logger, which the study sets"),
        ({"model.init_args.optimizer.init_args.lr": 1}, "use arms.optimizer"),
        ({"model": 1}, "model.init_args.optimizer, which the study sets"),
        ({"data": "x", "data.init_args.y": 1}, "data.init_args.y needs a mapping at 'data'"),
        ({"data.init_args.y": 1, "data": "x"}, "data would replace the mapping"),
        ({3: 1}, "overrides: 3 is no dotted key"),
    ],
)
def test_overrides_that_conflict_are_refused(write_study, overrides, message):
    with pytest.raises(ValueError, match=message):
        expand_runs(load_study(write_study(overrides=overrides)))


def test_the_fingerprint_follows_the_configuration_and_not_the_folder(write_study, tmp_path):
    def fingerprints(path, **changes):
        return [run.fingerprint for run in expand_runs(load_study(path, **changes))]

    first = fingerprints(write_study())
    assert len(set(first)) == 4
    assert fingerprints(write_study(), out=str(tmp_path / "moved")) == first
    assert not set(fingerprints(write_study(overrides={"trainer.max_epochs": 3}))) & set(first)
    path = write_study()
    with (tmp_path / "base.yaml").open("a") as base:
        base.write("more: 1\n")
    assert not set(fingerprints(path)) & set(first)


def test_a_base_config_that_is_no_mapping_is_refused(write_study, tmp_path):
    study = load_study(write_study())
    (tmp_path / "base.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold a mapping"):
        expand_runs(study)


def test_an_arm_inherits_no_optimizer_argument_of_the_base_config(write_study, tmp_path):
    study = load_study(write_study(arms=[SGD], seeds=[0]))
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1, "weight_decay": 0.1}}
    base = {"model": {"init_args": {"optimizer": optimizer}}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    with pytest.raises(ValueError, match="optimizer_args of 'sgd' must say weight_decay"):
        expand_runs(study)
    study.arms[0].optimizer_args["weight_decay"] = 0.0
    (run,) = expand_runs(study)
    stated = run.overlay["model"]["init_args"]["optimizer"]["init_args"]
    assert stated == {"lr": 0.1, "weight_decay": 0.0}


def test_an_arm_may_start_from_a_config_of_its_own(write_study, tmp_path):
    study = write_study(arms=[SGD, SGD | {"name": "other", "config": "other.yaml"}], seeds=[0])
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 7}}))
    usual, other = expand_runs(load_study(study))
    assert (usual.config, usual.max_epochs) == (tmp_path / "base.yaml", 2)
    assert (other.config, other.max_epochs) == (tmp_path / "other.yaml", 7)
    before = other.fingerprint
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 8}}))
    again = expand_runs(load_study(study))
    assert again[0].fingerprint == usual.fingerprint
    assert again[1].fingerprint != before
