import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PhimoeConfig,
    Qwen3ForSequenceClassification,
)

from rlsgd.models import loading as models
from rlsgd.models import names
from rlsgd.models.loading import (
    EMBEDDED,
    load_policy,
    load_reference,
    load_tokenizer,
    resolve_model,
    stop_token_ids,
)
from rlsgd.preparation.recipes import RECIPES
from tests.helpers.tiny_models import EOS, LLAMA, PAD, VOCABULARY, character_tokenizer


def test_router_jitter_and_nested_dropout_are_off_too():
    config = PhimoeConfig(router_jitter_noise=0.01, input_jitter_noise=0.02, rms_norm_eps=0.5)
    config.text = LlamaConfig(attention_dropout=0.3)  # pyright: ignore[reportAttributeAccessIssue]
    models.without_noise(config)
    assert (config.router_jitter_noise, config.input_jitter_noise) == (0.0, 0.0)
    assert config.text.attention_dropout == 0.0  # pyright: ignore[reportAttributeAccessIssue]
    assert config.rms_norm_eps == 0.5


def test_weights_are_float32_also_where_the_checkpoint_is_bfloat16(
    tiny_llama: Path, tmp_path: Path
):
    stored = AutoModelForCausalLM.from_pretrained(tiny_llama).bfloat16()
    stored.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    policy = load_policy(str(tmp_path))
    for (name, weight), original in zip(
        policy.named_parameters(), stored.parameters(), strict=True
    ):
        assert weight.dtype == torch.float32, name
        assert torch.equal(weight, original.float()), name


def test_policy_trains_and_reference_is_frozen(tiny_llama: Path):
    policy, reference = load_policy(str(tiny_llama)), load_reference(str(tiny_llama))
    assert all(module.training for module in policy.modules())
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert not any(module.training for module in reference.modules())
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    for (name, ours), theirs in zip(policy.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours is not theirs, name


def test_random_weights_follow_the_global_seed(tiny_llama: Path):
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        policy = load_policy(str(tiny_llama), random_weights=True)
        return policy.get_input_embeddings().weight.detach()

    stored = load_policy(str(tiny_llama)).get_input_embeddings().weight
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert not torch.equal(weights(1), stored)
    assert weights(1).shape == (len(VOCABULARY), LLAMA["hidden_size"])


def test_a_checkpoint_without_a_head_is_refused(tiny_qwen3: Path, tmp_path: Path):
    config = load_policy(str(tiny_qwen3)).config
    config.tie_word_embeddings = False
    Qwen3ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^--model\.policy .* lacks lm_head\.weight \(1 tensors"):
        load_policy(str(tmp_path))


def folder_with(tmp_path: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return str(tmp_path)


@pytest.mark.parametrize("load", [models.load_policy, models.load_tokenizer])
@pytest.mark.parametrize(
    "files",
    [{}, {"config.json": "{"}, {"config.json": '{"model_type": "no-such-type"}'}],
    ids=["empty", "malformed", "unknown"],
)
def test_what_cannot_be_loaded_names_the_flag(
    tmp_path: Path, load: Callable[[str], Any], files: dict[str, str]
):
    folder = folder_with(tmp_path, files)
    with pytest.raises(ValueError, match=r"^--model\.policy .*: .+ be loaded: "):
        load(folder)


def test_a_tokenizer_without_eos_is_refused_and_one_without_pad_pads_with_eos(tmp_path: Path):
    tokenizer = character_tokenizer(pad_token=None)
    tokenizer.save_pretrained(tmp_path / "without_pad")
    loaded = load_tokenizer(str(tmp_path / "without_pad"))
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.padding_side) == (EOS, EOS, "left")
    tokenizer.eos_token = None  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save_pretrained(tmp_path / "without_eos")
    with pytest.raises(ValueError, match=r"^--model\.policy .* has no eos token"):
        load_tokenizer(str(tmp_path / "without_eos"))


def test_resolve_model_knows_folders_prepared_models_and_hub_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "prepared").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("embedded") == str(EMBEDDED)
    assert resolve_model("folder") == "folder"
    assert resolve_model("prepared") == str(tmp_path / "cache" / "prepared")
    monkeypatch.setattr(names, "require_hub", lambda *_, **__: None)  # it has it
    assert resolve_model("owner/name") == "owner/name"
    monkeypatch.setenv("RLSGD_CACHE", "")
    assert models.cache_folder() == Path.home() / ".cache" / "rlsgd"


@pytest.mark.parametrize("path", ["", "name", "./owner/name", "/owner/name", "~/name", "a/b/c"])
def test_what_is_not_there_names_the_flag(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"^--model\.policy "):
        resolve_model(path)


def test_an_unprepared_model_names_the_tool_that_prepares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"Run: rlsgd data prepare smollm2"):
        resolve_model("smollm2-135m-instruct")
    commands = {name for name in models.PREPARED_BY.values() if name.startswith("rlsgd ")}
    assert commands == {f"rlsgd data prepare {name}" for name in RECIPES}


def test_only_the_special_tokens_of_a_shipped_generation_config_are_kept(
    tiny_llama: Path, tmp_path: Path
):
    stored = AutoModelForCausalLM.from_pretrained(tiny_llama)
    stored.generation_config = GenerationConfig(
        do_sample=True, top_k=3, top_p=0.5, temperature=0.2, eos_token_id=[7, EOS], pad_token_id=PAD
    )
    stored.save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path))
    kept = GenerationConfig(eos_token_id=[7, EOS], pad_token_id=PAD).to_diff_dict()
    assert policy.generation_config is not None
    assert policy.generation_config.to_diff_dict() == kept


@pytest.mark.parametrize(("own", "expected"), [(None, [EOS]), (5, [EOS, 5]), ([9, EOS], [EOS, 9])])
def test_stop_tokens_are_those_of_tokenizer_and_model(tiny_llama: Path, own: Any, expected: list):
    policy, tokenizer = load_policy(str(tiny_llama)), load_tokenizer(str(tiny_llama))
    policy.generation_config = GenerationConfig(eos_token_id=own)
    assert stop_token_ids(policy, tokenizer) == expected
