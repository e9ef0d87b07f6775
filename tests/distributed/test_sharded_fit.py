"""Checkpoints, export, callbacks, evaluation and divergence of a sharded fit on two ranks."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from rlsgd.algorithms import GRPO
from rlsgd.callbacks import EffectiveRank, HFExport, Memory, UpdateSparsity
from rlsgd.callbacks.memory import num_bytes
from rlsgd.core.distributed import gathered
from rlsgd.core.types import DivergedError
from rlsgd.functional.updates import (
    SparsityCounts,
    count_unchanged,
    effective_rank,
    squared_spectrum,
    stable_rank,
)
from rlsgd.models.loading import load_policy
from rlsgd.models.strategy import FSDP2Strategy
from rlsgd.rollout.sampler import HFSampler
from tests.distributed.fits import (
    FixedSampler,
    fit,
    make_data,
    make_module,
    make_trainer,
    on_two_ranks,
    weights,
)

KINDS = {"shards": True, "file": False}
RESUMED = ("grpo", "ppo")  # plain SGD, which has no state; SGD and AdamW in one container


def strategy(kind: str) -> FSDP2Strategy:
    return FSDP2Strategy(save_distributed_checkpoint=KINDS[kind])


def save(folder: Path, name: str, result: dict[str, Any], rank: int) -> None:
    if rank == 0:
        torch.save(result, folder / f"{name}.pt")


def resumptions(rank: int, model: Path, folder: Path) -> None:
    for name in RESUMED:
        _, _, result = fit(name, model, folder, ranks=2)
        save(folder, f"{name}_uninterrupted", result, rank)
        for kind in KINDS:
            path = folder / f"{name}_{kind}.ckpt"
            options = {"ranks": 2, "max_epochs": 2, "strategy": strategy(kind)}
            _, trainer, _ = fit(name, model, folder, **options)
            trainer.save_checkpoint(path)
            _, _, result = fit(name, model, folder, ranks=2, ckpt_path=path)
            save(folder, f"{name}_{kind}", result, rank)
        path = folder / f"{name}_one.ckpt"  # written by one process
        _, _, result = fit(name, model, folder, ranks=2, ckpt_path=path)
        save(folder, f"{name}_one", result, rank)


def observed(rank: int, model: Path, folder: Path) -> None:
    """Callbacks and export, and what the ranks hold together."""
    callbacks = [
        UpdateSparsity(),
        EffectiveRank(),
        EffectiveRank(model="value"),
        Memory(),
        HFExport(str(folder / "hf")),
    ]
    logger = CSVLogger(folder / "observed", name="", version="")
    module, trainer, _ = fit("ppo", model, folder, ranks=2, callbacks=callbacks, logger=logger)
    states = [v for s in trainer.optimizers[0].state.values() for v in s.values()]
    bytes_of = {
        "parameters": num_bytes(p for p in module.parameters() if p.requires_grad),
        "states": num_bytes(v for v in states if v.ndim),
    }
    everybody = gathered([bytes_of])
    save(folder, "observed", {"bytes": everybody, "weights": weights(module)}, rank)


def evaluated(rank: int, model: Path, folder: Path) -> None:
    """As on the command line: a validation, then the fit, on 5 problems and two ranks."""
    data = {"val_problems": 5, "val_batch_size": 2}
    for gather in (True, False):
        module = make_module("grpo", model, sampler=HFSampler(gather_weights=gather))
        trainer = make_trainer(folder, ranks=2, max_epochs=1, inference_mode=False)
        trainer.validate(module, datamodule=make_data(model, **data), verbose=False)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        save(folder, f"evaluated_{gather}", metrics, rank)
        trainer.fit(module, datamodule=make_data(model, **data))
        assert trainer.global_step == 2


def diverged(rank: int, model: Path, folder: Path) -> None:
    module = make_module("grpo", model)
    trainer = make_trainer(folder, ranks=2)
    trainer.strategy._lightning_module = module
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.strategy.setup_environment()
    module.configure_model()
    with pytest.raises(DivergedError, match="the loss is nan"):
        module.require_finite_loss(torch.tensor(float("nan") if rank else 1.0))
    module.require_finite_weights()
    part = module.policy.model.norm.weight.to_local().detach()
    if rank:
        part[-1] = float("inf")
    with pytest.raises(DivergedError, match=r"model\.norm\.weight is no longer finite"):
        module.require_finite_weights()
    (folder / f"diverged.{rank}").touch()


def everything(rank: int, model: Path, folder: Path) -> None:
    for part in (resumptions, observed, evaluated, diverged):
        part(rank, model, folder)


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    for name in RESUMED:
        _, trainer, _ = fit(name, tiny_llama, folder, max_epochs=2)
        trainer.save_checkpoint(folder / f"{name}_one.ckpt")
    on_two_ranks(everything, tiny_llama, folder)
    return folder


def trained(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}.pt")["weights"]


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(name, kind, folder):
    expected = trained(folder, f"{name}_uninterrupted")
    resumed = trained(folder, f"{name}_{kind}")
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", RESUMED)
def test_one_file_goes_between_one_process_and_two(name, folder, tiny_llama, tmp_path):
    """To the rounding of test_two_ranks_equal_one.py."""
    expected = trained(folder, f"{name}_uninterrupted")
    _, _, onward = fit(name, tiny_llama, tmp_path, ckpt_path=folder / f"{name}_file.ckpt")
    for result in (onward["weights"], trained(folder, f"{name}_one")):
        assert result.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(result[key], value, rtol=0, atol=1e-6)


def test_no_checkpoint_holds_the_reference(folder):
    for name in RESUMED:
        file = torch.load(folder / f"{name}_file.ckpt", weights_only=False)
        own = {"policy", "value"} if name == "ppo" else {"policy"}
        assert {key.split(".")[0] for key in file["state_dict"]} == own
        one = torch.load(folder / f"{name}_one.ckpt", weights_only=False)
        assert file["state_dict"].keys() == one["state_dict"].keys()
        stored = FileSystemReader(folder / f"{name}_shards.ckpt").read_metadata()
        names = stored.state_dict_metadata.keys()
        assert {key.split(".")[1] for key in names if key.startswith("model.")} == own


def test_a_checkpoint_of_another_run_is_refused(folder, tiny_llama_untied):
    """On the first rank's side alone: the strategy of one rank that is in no group."""
    module = make_module("grpo", tiny_llama_untied)
    module.configure_model()
    own = FSDP2Strategy()
    own._lightning_module = module
    own.broadcast = lambda path: path  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"--ckpt_path .* has no policy\.lm_head\.weight|of shape"):
        file = torch.load(folder / "grpo_file.ckpt", weights_only=False)
        del file["state_dict"]["policy.lm_head.weight"]
        torch.save(file, folder / "other.ckpt")
        own.load_checkpoint(folder / "other.ckpt", weights_only=False)
    with pytest.raises(ValueError, match="neither a checkpoint file nor a folder"):
        own.load_checkpoint(folder / "nothing.ckpt")


def test_export_is_the_trained_policy(folder, tiny_llama):
    expected = trained(folder, "observed")
    exported = AutoModelForCausalLM.from_pretrained(folder / "hf")
    named = dict(exported.named_parameters())
    assert {f"policy.{name}" for name in named} == {k for k in expected if k.startswith("policy.")}
    assert all(torch.equal(value, expected[f"policy.{name}"]) for name, value in named.items())
    config = json.loads((folder / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_callbacks_log_what_the_whole_weights_say(folder, tiny_llama):
    with (folder / "observed" / "metrics.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    last = {name: value for row in rows for name, value in row.items()}
    after, before = trained(folder, "observed"), load_policy(str(tiny_llama)).named_parameters()
    counts, ranks = SparsityCounts(), []
    for name, start in before:
        end = after[f"policy.{name}"]
        counts += count_unchanged(end, start.detach(), tolerances=(1e-8, 1e-7, 1e-6, 1e-5, 1e-4))
        if end.ndim == 2:
            spectrum = squared_spectrum(end - start.detach())
            ranks.append((effective_rank(spectrum, energy=0.99), float(stable_rank(spectrum))))
    for name, value in counts.fractions().items():
        assert last[f"update/{name}"] == value
    assert len(ranks) > 10
    assert last["update/effective_rank"] == pytest.approx(sum(r for r, _ in ranks) / len(ranks))
    assert last["update/stable_rank"] == pytest.approx(sum(s for _, s in ranks) / len(ranks))
    lines = (folder / "observed" / "effective_rank.jsonl").read_text().splitlines()
    order = [name for name, p in load_policy(str(tiny_llama)).named_parameters() if p.ndim == 2]
    assert [list(json.loads(line)["tensors"]) for line in lines] == [order] * 3
    assert last["value_update/effective_rank"] >= 1


def test_bytes_of_the_ranks_add_up(folder):
    result = torch.load(folder / "observed.pt")
    numel = {
        model: sum(v.numel() for k, v in result["weights"].items() if k.startswith(model))
        for model in ("policy", "value")
    }
    both = result["bytes"]
    assert sum(own["parameters"] for own in both) == 4 * (numel["policy"] + numel["value"])
    assert sum(own["states"] for own in both) == 8 * numel["value"]  # AdamW's two moments
    assert both[0]["parameters"] < 0.52 * sum(own["parameters"] for own in both)
    with (folder / "observed" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["memory/parameter_bytes"]]
    assert {float(row["memory/parameter_bytes"]) for row in rows} == {both[0]["parameters"]}
    closed = {float(row["memory/closed_form_bytes"]) for row in rows}
    assert closed == {both[0]["parameters"] + both[0]["states"]}


def test_evaluation_on_unequal_shares_equals_one_process(folder, tiny_llama, tmp_path):
    module = make_module("grpo", tiny_llama, sampler=HFSampler())
    trainer = make_trainer(tmp_path)
    data = make_data(tiny_llama, val_problems=5, val_batch_size=2)
    trainer.validate(module, datamodule=data, verbose=False)
    expected = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert expected["val/mean_length"] > 1 and expected["val/reward"] > 0
    for gather in (True, False):
        assert torch.load(folder / f"evaluated_{gather}.pt") == pytest.approx(expected, rel=1e-6)


def test_all_ranks_stop_where_one_diverges(folder):
    assert (folder / "diverged.0").exists() and (folder / "diverged.1").exists()


def test_lightnings_own_strategy_is_refused(tiny_llama, tmp_path):
    trainer = make_trainer(tmp_path, strategy="auto")
    module = GRPO(policy=str(tiny_llama), sampler=FixedSampler())
    module.trainer, module._device_mesh = trainer, object()
    with pytest.raises(
        ValueError, match=r"--trainer.strategy .*use rlsgd.models.strategy.FSDP2Strategy"
    ):
        module.configure_model()
