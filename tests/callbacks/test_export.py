import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlsgd.callbacks import HFExport
from rlsgd.core.checkpoints import LazyTensors
from tests.callbacks.callback_stub import PolicyStub, loader, make_trainer


def train(folder: Path, tmp_path: Path, callback: HFExport, **settings) -> PreTrainedModel:
    def adam(policy: PreTrainedModel) -> torch.optim.Optimizer:
        return torch.optim.AdamW(policy.parameters(), lr=1e-2)

    module = PolicyStub(folder, adam, **settings)
    make_trainer(tmp_path, [callback], epochs=2).fit(module, loader(2))
    return module.policy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_export_reloads_bit_for_bit(tiny_model: Path, tmp_path: Path, dtype: torch.dtype):
    name: Any = str(dtype).removeprefix("torch.")
    policy = train(tiny_model, tmp_path, HFExport(dtype=name), dtype=dtype)
    reloaded, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(loading.values()), loading
    trained, original = (
        dict(policy.named_parameters()),
        dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters()),
    )
    again = dict(reloaded.named_parameters())
    assert again.keys() == trained.keys()
    for name, weight in trained.items():
        assert again[name].dtype == dtype
        assert torch.equal(again[name], weight), name
    assert not torch.equal(trained[next(iter(trained))].float(), original[next(iter(trained))])
    assert reloaded.config.tie_word_embeddings == policy.config.tie_word_embeddings
    ids = torch.tensor([[5, 9, 12]])
    assert torch.equal(reloaded(ids).logits, policy.eval()(ids).logits)
    exported, base = (AutoTokenizer.from_pretrained(p) for p in (tmp_path / "hf", tiny_model))
    assert exported.get_vocab() == base.get_vocab()
    assert (exported.pad_token_id, exported.eos_token_id) == (base.pad_token_id, base.eos_token_id)


def test_the_folder_can_be_chosen_and_be_the_start_of_the_next_run(
    tiny_llama: Path, tmp_path: Path
):
    folder = tmp_path / "chosen" / "folder"
    policy = train(tiny_llama, tmp_path / "run", HFExport(str(folder)))
    next_run = PolicyStub(folder, lambda p: torch.optim.SGD(p.parameters()))
    next_run.configure_model()
    for ours, theirs in zip(policy.parameters(), next_run.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not (tmp_path / "run" / "hf").exists()


def test_buffers_that_belong_to_the_checkpoint_are_exported(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def configure(self: PolicyStub) -> None:
        original(self)
        self.policy.register_buffer("bias_correction", torch.tensor([1.5, 2.5]))
        self.policy.register_buffer("scratch", torch.tensor([0.0]), persistent=False)

    original = PolicyStub.configure_model
    monkeypatch.setattr(PolicyStub, "configure_model", configure)
    train(tiny_llama, tmp_path, HFExport())
    tensors = LazyTensors.open(tmp_path / "hf")
    assert tensors["bias_correction"].tolist() == [1.5, 2.5]
    assert "scratch" not in tensors


GENERATION = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    ("option", "expected"), [("checkpoint", torch.bfloat16), ("float32", torch.float32)]
)
def test_dtype_and_generation_config_are_the_checkpoints_own(
    option: Any, expected: torch.dtype, tiny_llama: Path, tmp_path: Path
):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(base)
    shipped = json.dumps({**GENERATION, "do_sample": True, "eos_token_id": [1, 2]})
    (base / "generation_config.json").write_text(shipped)
    policy = train(base, tmp_path, HFExport(dtype=option))
    hf = tmp_path / "hf"
    assert (hf / "generation_config.json").read_text() == shipped
    assert json.loads((hf / "config.json").read_text())["dtype"] == str(expected)[6:]
    written, trained = LazyTensors.open(hf), dict(policy.named_parameters())
    for name in written.files:
        assert written[name].dtype == written.dtype(name) == expected
        assert torch.equal(written[name], trained[name].to(expected))
    assert next(AutoModelForCausalLM.from_pretrained(hf).parameters()).dtype == expected


def test_the_card_says_how_the_model_came_to_be(tiny_llama: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(f"model:\n  policy: {Path.home()}/base\n")
    train(tiny_llama, tmp_path, HFExport())
    card = (tmp_path / "hf" / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("---\n\n", 1)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["rlsgd"]}
    assert f"`{tiny_llama.name}` after 2 epochs (4 optimizer steps) of PolicyStub" in body
    for row in ("| optimizer | AdamW |", "| lr | 0.01 |", "| betas | (0.9, 0.999) |"):
        assert row in body
    assert f"| torch | {torch.__version__} |" in body
    assert "```yaml\nmodel:\n  policy: ~/base\n```" in body
    assert str(Path.home()) not in card
