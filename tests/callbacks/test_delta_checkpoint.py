"""A delta for each epoch gives back the policy that an export holds, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlsgd.callbacks import DeltaCheckpoint, HFExport
from rlsgd.cli.main import main
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.deltas.reader import Delta
from tests.callbacks.callback_stub import PolicyStub, Scripted, loader, make_trainer, values


def adam(policy: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(policy.parameters(), lr=1e-2)


def grow(policy: PreTrainedModel) -> None:
    next(policy.parameters())[0, 0] += 1.0


def train(folder: Path, run: Path, *callbacks: Any, optimizer=adam, epochs=2, **settings: Any):
    module = PolicyStub(folder, optimizer, **settings)
    written_as: Any = str(settings.get("dtype", torch.float32)).removeprefix("torch.")
    make_trainer(run, [*callbacks, HFExport(dtype=written_as)], epochs=epochs).fit(
        module, loader(1)
    )
    return module.policy


def applied(base: Path, out: Path, *deltas: Path) -> LazyTensors:
    assert main(["delta", "apply", str(base), *map(str, deltas), str(out)]) == 0
    return LazyTensors.open(out)


def assert_same(found: LazyTensors, expected: LazyTensors, dtype: torch.dtype | None = None):
    assert found.files.keys() == expected.files.keys()
    for name in expected.files:
        value = expected[name] if dtype is None else expected[name].to(dtype)
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_delta_of_the_last_epoch_gives_the_export(
    tiny_model: Path, tmp_path: Path, dtype: torch.dtype
):
    run = tmp_path / "run"
    train(tiny_model, run, DeltaCheckpoint(), DeltaCheckpoint(dtype="bfloat16"), dtype=dtype)
    exported = LazyTensors.open(run / "hf")
    last = "delta-epoch=1.safetensors"
    assert_same(applied(tiny_model, tmp_path / "exact", run / "deltas" / last), exported)
    view = applied(tiny_model, tmp_path / "view", run / "deltas_bfloat16" / last)
    assert_same(view, exported, torch.bfloat16)
    for folder, expected in (("exact", dtype), ("view", torch.bfloat16)):
        model, loading = AutoModelForCausalLM.from_pretrained(
            tmp_path / folder, output_loading_info=True
        )
        assert model.dtype == expected and not any(loading.values())
        AutoTokenizer.from_pretrained(tmp_path / folder)


def test_every_epoch_is_kept_and_its_numbers_logged(tiny_llama: Path, tmp_path: Path):
    def scripted(policy: PreTrainedModel) -> torch.optim.Optimizer:
        return Scripted(policy, [grow] * 3)

    policy = train(tiny_llama, tmp_path, DeltaCheckpoint(), optimizer=scripted, epochs=3)
    numel = sum(weight.numel() for weight in policy.parameters())
    files = [tmp_path / "deltas" / f"delta-epoch={epoch}.safetensors" for epoch in range(3)]
    assert sorted((tmp_path / "deltas").iterdir()) == files
    assert values(tmp_path, "delta/bytes") == [path.stat().st_size for path in files]
    assert values(tmp_path, "delta/changed_share") == [1 / numel] * 3, "always since the start"
    assert len(values(tmp_path, "delta/seconds")) == 3
    assert all(seconds > 0 for seconds in values(tmp_path, "delta/seconds"))
    assert {Delta(path).manifest.base for path in files} == {Delta(files[0]).manifest.base}


def test_a_chain_starts_each_delta_at_the_one_before(tiny_llama: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(tiny_llama, run, DeltaCheckpoint(chain=True), epochs=4)
    chained = [run / "deltas" / f"delta-epoch={epoch}.safetensors" for epoch in range(4)]
    assert not list(run.glob("scratch-*"))
    assert_same(applied(tiny_llama, tmp_path / "out", *chained), LazyTensors.open(run / "hf"))


def test_only_every_nth_epoch_and_the_last(tiny_llama: Path, tmp_path: Path):
    train(tiny_llama, tmp_path, DeltaCheckpoint(every_n_epochs=2), epochs=3)
    names = {path.name for path in (tmp_path / "deltas").iterdir()}
    assert names == {"delta-epoch=1.safetensors", "delta-epoch=2.safetensors"}


def test_random_weights_have_their_start_in_the_runs_folder(tiny_llama: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(tiny_llama, run, DeltaCheckpoint(), random_weights=True)
    result = applied(
        run / "starting_weights", tmp_path / "out", run / "deltas" / "delta-epoch=1.safetensors"
    )
    exported = LazyTensors.open(run / "hf")
    assert_same(result, exported)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.model.norm.weight, exported["model.norm.weight"])
    AutoTokenizer.from_pretrained(tmp_path / "out")


def test_a_float32_run_of_a_bfloat16_model_is_compared_in_float32(tiny_llama: Path, tmp_path: Path):
    start = tmp_path / "start"
    AutoModelForCausalLM.from_pretrained(tiny_llama).bfloat16().save_pretrained(start)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(start)
    run = tmp_path / "run"

    def scripted(policy: PreTrainedModel) -> torch.optim.Optimizer:
        return Scripted(policy, [grow])

    policy = train(start, run, DeltaCheckpoint(), optimizer=scripted, epochs=1)
    numel = sum(weight.numel() for weight in policy.parameters())
    assert values(run, "delta/changed_share") == [1 / numel]
    result = applied(start, tmp_path / "out", run / "deltas" / "delta-epoch=0.safetensors")
    assert_same(result, LazyTensors.open(run / "hf"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_buffers_of_the_checkpoint_belong_to_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def configure(self: PolicyStub) -> None:
        original(self)
        self.policy.register_buffer("counter", torch.tensor([3, 4]))
        self.policy.register_buffer("scratch", torch.tensor([0.0]), persistent=False)

    original = PolicyStub.configure_model
    monkeypatch.setattr(PolicyStub, "configure_model", configure)
    run = tmp_path / "run"
    train(tiny_llama, run, DeltaCheckpoint(dtype="bfloat16"))
    delta = run / "deltas_bfloat16" / "delta-epoch=1.safetensors"
    result = applied(tiny_llama, tmp_path / "out", delta)
    assert result["counter"].tolist() == [3, 4] and result["counter"].dtype == torch.int64
    assert "scratch" not in result


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match=r"--trainer.callbacks: DeltaCheckpoint has dtype 'int4'"):
        DeltaCheckpoint(dtype="int4")
