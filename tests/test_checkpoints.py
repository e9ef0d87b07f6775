import errno
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd.core import checkpoints
from rlsgd.core.checkpoints import LazyTensors, starting_weights, write_tensors
from rlsgd.core.distributed import full_parameters
from rlsgd.models.loading import load_policy


def start(
    policy: PreTrainedModel, path: Path | None, snapshot: Path, resumed: bool = False
) -> LazyTensors:
    return starting_weights(
        lambda: full_parameters(policy), str(path) if path else None, snapshot, resumed=resumed
    )


def assert_holds(weights: LazyTensors, expected: Iterable[tuple[str, Tensor]]) -> None:
    for name, value in expected:
        assert torch.equal(weights[name], value), name


def nudge(policy: PreTrainedModel) -> PreTrainedModel:
    """Change one entry of the last parameter by the least that float32 can hold."""
    with torch.no_grad():
        entry = list(policy.parameters())[-1].view(-1)[-1:]
        entry.copy_(torch.nextafter(entry, torch.tensor(torch.inf)))
    return policy


def test_a_single_file_is_read_by_folder_or_by_file(tiny_model: Path):
    expected = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    for path in (tiny_model, tiny_model / "model.safetensors"):
        tensors = LazyTensors.open(path)
        assert set(tensors.files) == set(expected)
        assert_holds(tensors, expected.items())
        assert all(tensors.shape(name) == value.shape for name, value in expected.items())
        assert "no.such.tensor" not in tensors


def test_a_sharded_folder_is_read_through_its_index(tiny_llama: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    tensors = LazyTensors.open(tmp_path)
    assert len(set(tensors.files.values())) > 2
    assert_holds(tensors, model.named_parameters())


@pytest.mark.parametrize("name", ["", "no_such_folder", "no_such_owner/no_such_model"])
def test_what_is_not_there_is_file_not_found(tmp_path: Path, name: str):
    path = name if "/" in name else tmp_path / name
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors nor"):
        LazyTensors.open(path)


def test_no_mapping_stays_open(tmp_path: Path):
    save_file({"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}, tmp_path / "x.safetensors")
    tensors = LazyTensors.open(tmp_path / "x.safetensors")
    assert tensors["a"].item() == 1.0
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or str(tmp_path) not in mapped.read_text()
    save_file({"a": torch.tensor([[3.0]]), "b": torch.tensor([4.0])}, tmp_path / "x.safetensors")
    assert tensors["a"].item() == 3.0 and tensors.shape("a") == (1, 1)
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        tensors["b"]


def test_written_tensors_are_read_back_whole_and_alone(tmp_path: Path):
    values = [
        ("a", torch.randn(3, 4).T),  # not contiguous
        ("b", torch.tensor(2.0, dtype=torch.bfloat16)),
        ("c", torch.randn(2)),
    ]
    tensors = write_tensors(values, tmp_path / "new" / "folder")
    assert_holds(tensors, values)
    assert tensors["b"].dtype == torch.bfloat16
    assert_holds(write_tensors(values[:1], tmp_path / "new" / "folder"), values[:1])
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 1


def test_a_full_disk_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_args: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(OSError, match="No space left") as raised:
        write_tensors([("a", torch.zeros(1))], tmp_path)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "000000.safetensors")


def test_the_checkpoint_on_disk_serves_where_it_is_equal(tiny_model: Path, tmp_path: Path):
    snapshot = tmp_path / "starting_weights"
    write_tensors([("of an older run", torch.zeros(1))], snapshot)
    policy = load_policy(str(tiny_model))
    weights = start(policy, tiny_model, snapshot)
    assert set(weights.files.values()) == {tiny_model / "model.safetensors"}
    assert_holds(weights, policy.named_parameters())
    assert list(snapshot.iterdir()) == [], "a resumed run would mistake it for its own"


def test_a_bfloat16_checkpoint_is_equal_to_its_float32_policy(tiny_llama: Path, tmp_path: Path):
    AutoModelForCausalLM.from_pretrained(tiny_llama).bfloat16().save_pretrained(tmp_path / "bf16")
    policy = load_policy(str(tmp_path / "bf16"))
    weights = start(policy, tmp_path / "bf16", tmp_path / "snapshot")
    assert set(weights.files.values()) == {tmp_path / "bf16" / "model.safetensors"}
    assert not (tmp_path / "snapshot").exists()


def other_values(policy: PreTrainedModel, folder: Path, tmp_path: Path) -> Path:
    nudge(policy)
    return folder


def other_names(policy: PreTrainedModel, folder: Path, tmp_path: Path) -> Path:
    renamed = {f"base.{name}": value.detach() for name, value in policy.named_parameters()}
    save_file(renamed, tmp_path / "model.safetensors")
    return tmp_path


def no_safetensors(policy: PreTrainedModel, folder: Path, tmp_path: Path) -> Path:
    torch.save(policy.state_dict(), tmp_path / "pytorch_model.bin")
    return tmp_path


def random_start(policy: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    return None


@pytest.mark.parametrize("case", [other_values, other_names, no_safetensors, random_start])
def test_a_snapshot_serves_otherwise(tiny_llama: Path, tmp_path: Path, case: Any):
    policy, snapshot = load_policy(str(tiny_llama)), tmp_path / "snapshot"
    path = case(policy, tiny_llama, tmp_path)
    weights = start(policy, path, snapshot)
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    assert {file.parent for file in weights.files.values()} == {snapshot}
    nudge(policy)
    assert_holds(weights, before.items())
    assert weights.files.keys() == before.keys()
    resumed = start(policy, path, snapshot, resumed=True)  # live weights are trained by now
    assert_holds(resumed, before.items())


def test_a_resumed_run_trusts_the_disk_by_names_and_shapes(tiny_llama: Path, tmp_path: Path):
    policy = nudge(load_policy(str(tiny_llama)))
    weights = start(policy, tiny_llama, tmp_path / "snapshot", resumed=True)
    assert_holds(weights, load_policy(str(tiny_llama)).named_parameters())


@pytest.mark.parametrize("case", [other_names, no_safetensors, random_start])
def test_a_resumed_run_without_its_start_is_refused(tiny_llama: Path, tmp_path: Path, case: Any):
    policy = load_policy(str(tiny_llama))
    path = case(policy, tiny_llama, tmp_path)
    start(policy, path, tmp_path / "snapshot")
    shutil.rmtree(tmp_path / "snapshot")
    with pytest.raises(FileNotFoundError, match=r"snapshot: the starting weights .* not there"):
        start(policy, path, tmp_path / "snapshot", resumed=True)


def test_a_resumed_run_with_another_architecture_is_refused(
    tiny_llama: Path, tiny_qwen3: Path, tmp_path: Path
):
    with pytest.raises(FileNotFoundError, match="cannot be measured"):
        start(load_policy(str(tiny_qwen3)), tiny_llama, tmp_path / "snapshot", resumed=True)


def test_a_resumed_run_with_a_tensor_of_another_shape_is_refused(tiny_llama: Path, tmp_path: Path):
    policy = load_policy(str(tiny_llama))
    tensors = {name: value.detach().clone() for name, value in policy.named_parameters()}
    tensors["model.norm.weight"] = torch.zeros(31)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="cannot be measured"):
        start(policy, tmp_path, tmp_path / "snapshot", resumed=True)
