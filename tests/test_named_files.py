"""An index, a delta or a manifest names files of its own folder, and no others."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import Metadata

from rlsgd.analysis.checkpoint_files import open_checkpoint
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.named_files import check_model_folder, named_file
from rlsgd.deltas.command import main as delta
from rlsgd.deltas.pack import small_files
from rlsgd.models.loading import EMBEDDED, load_policy, load_tokenizer, resolve_model
from rlsgd.models.shard_index import UnsafeIndexError, read_index

ELSEWHERE = [
    "../secret.safetensors",
    "sub/../../secret.safetensors",
    "..",
    ".",
    "",
    "{folder}/secret.safetensors",
    "C:\\secret.safetensors",
    "..\\secret.safetensors",
    "link.safetensors",
    "linked/secret.safetensors",
    "a\0b",
]


@pytest.fixture
def folder(tmp_path):
    """A model's folder beside a file that is not its own, with links to it."""
    model = tmp_path / "model"
    model.mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    save_file({"w": torch.zeros(2)}, model / "own.safetensors")
    (model / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (model / "linked").symlink_to(tmp_path)
    return model


def write_index(model, name):
    name = name.format(folder=model.parent)
    index = {"metadata": {}, "weight_map": {"w": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_whoever_opens_an_index_of_shards_refuses(folder, name):
    write_index(folder, name)
    openers = {
        "callbacks, deltas and analysis": lambda: LazyTensors.open(folder),
        "fit": lambda: load_policy(str(folder)),
        "all that name a model": lambda: resolve_model(str(folder)),
        "analyze": lambda: open_checkpoint(str(folder), "BASE"),
    }
    for who, opened in openers.items():
        with pytest.raises(ValueError, match=r"leads out of its folder|is a link|no file"):
            opened()
            pytest.fail(who)


@pytest.mark.parametrize("name", [ELSEWHERE[0], "link.safetensors"])
def test_packing_a_delta_refuses_with_the_argument(folder, name, tmp_path, capsys):
    write_index(folder, name)
    assert delta(["pack", str(folder), str(folder), str(tmp_path / "out")]) == 2
    assert str(folder) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_plain_names_are_opened(folder):
    write_index(folder, "own.safetensors")
    assert torch.equal(LazyTensors.open(folder)["w"], torch.zeros(2))
    (folder / "sub").mkdir()
    assert named_file(folder, "sub/own.safetensors") == folder / "sub" / "own.safetensors"


def test_what_is_no_index_is_said(folder):
    for text in ("[]", "{", '{"weight_map": 3}', '{"weight_map": {"w": 3}}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match=r"no index of shards|no file"):
            check_model_folder(folder)


def test_the_hubs_cache_links_to_its_own_blobs_alone(tmp_path):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    save_file({"w": torch.ones(2)}, repository / "blobs" / "abc")
    save_file({"w": torch.ones(2)}, tmp_path / "secret")
    (snapshot / "one.safetensors").symlink_to("../../blobs/abc")
    (snapshot / "two.safetensors").symlink_to("../../../secret")
    write_index(snapshot, "one.safetensors")
    assert torch.equal(LazyTensors.open(snapshot)["w"], torch.ones(2))
    write_index(snapshot, "two.safetensors")
    with pytest.raises(ValueError, match="is a link"):
        LazyTensors.open(snapshot)


def test_a_model_of_the_hub_is_checked_before_it_is_loaded(tmp_path, monkeypatch):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "123"
    shutil.copytree(EMBEDDED, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("123")
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    assert load_policy("a/b").num_parameters() > 0
    (snapshot / "model.safetensors").unlink()
    write_index(snapshot, "../../../secret.safetensors")
    with pytest.raises(ValueError, match=r"--model.policy a/b: .* leads out of its folder"):
        load_policy("a/b")


@pytest.mark.parametrize("key", ["vocab_file", "tokenizer_file", "merges"])
def test_a_tokenizers_settings_name_no_file_elsewhere(folder, key):
    settings = folder / "tokenizer_config.json"
    for name in (str(folder.parent / "secret.safetensors"), str(folder / "link.safetensors")):
        settings.write_text(json.dumps({key: name}))
        with pytest.raises(ValueError, match="leads out of its folder"):
            load_tokenizer(str(folder))
    # Of another machine, or none: nothing is opened.
    for name in ("/home/somebody/vocab.json", None, "vocab.json", 3, "a\0b"):
        settings.write_text(json.dumps({key: name}))
        check_model_folder(folder)
    settings.write_text("[3]")
    with pytest.raises(ValueError, match="cannot be read"):
        check_model_folder(folder)


def test_an_adapter_names_another_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}')
    with pytest.raises(ValueError, match=r"--model.policy .* names another model; merge it first"):
        load_policy(str(folder))


def test_a_name_of_no_plain_file_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "sub").mkdir()
    for name in ("pipe.safetensors", "sub"):
        write_index(folder, name)
        with pytest.raises(ValueError, match="is no file"):
            load_policy(str(folder))


def test_configuration_files_that_are_links_are_not_packed(folder):
    (folder.parent / "private.json").write_text("{}")
    (folder / "config.json").symlink_to("../private.json")
    with pytest.raises(ValueError, match="is a link"):
        small_files(folder)


@pytest.mark.parametrize("name", ["..", "../x", "/x", "link.safetensors"])
def test_an_index_of_a_sharded_checkpoint(folder, name):
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    index = Metadata(state_dict_metadata={}, storage_data={"w": _StorageInfo(name, 0, 1)})
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(UnsafeIndexError, match="points outside its folder"):
        read_index(folder)
