"""Checkpoint files: whole or not at all, and nothing in them is run."""

import errno
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from rlsgd.models.shard_index import INDEX, META, UnsafeIndexError, check_shards, read_index
from rlsgd.models.strategy import FSDP2Strategy
from rlsgd.resume import AtomicCheckpointIO
from rlsgd.resume.files import checkpoints_in, publish, read_checkpoint, unfinished

STATE = {"weights": torch.arange(5000.0), "epoch": 3}


class Hostile:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def shards(tmp_path):
    """A folder as FSDP2Strategy writes it, by one process."""
    folder = tmp_path / "iteration=1.ckpt"
    tensors = {"model.weight": torch.arange(3000.0), "optimizer.0.1": torch.tensor(2.0)}
    tensors["model.half"] = torch.ones(7, dtype=torch.bfloat16)
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 3}, folder / META)
    return folder


@pytest.fixture
def small_files():
    """No file can grow beyond 4 KiB; the error is that of a disk that is full for this file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "new" / "iteration=3.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    found = read_checkpoint(path)
    assert found["epoch"] == 3 and torch.equal(found["weights"], STATE["weights"])
    assert os.listdir(path.parent) == [path.name]


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path, small_files):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    with pytest.raises(OSError) as raised:
        AtomicCheckpointIO().save_checkpoint(STATE, path)
    assert raised.value.errno == errno.EFBIG
    assert Path(raised.value.filename).parent == tmp_path, "the message has to name the disk"
    assert read_checkpoint(path) == {"epoch": 2}
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_takes_the_place_of_another(tmp_path):
    old, new = tmp_path / "iteration=1.ckpt", unfinished(tmp_path / "iteration=1.ckpt")
    for folder, name in ((old, "old"), (new, "new")):
        folder.mkdir()
        (folder / name).touch()
    publish(new, old)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [
        Path(old.name),
        Path(old.name) / "new",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["iteration=10.ckpt", "iteration=9.ckpt", "iteration=4.ckpt", "epoch=11.ckpt"],
        ["epoch=10-step=20.ckpt", "epoch=9-step=30.ckpt", "epoch=9-step=3.ckpt", "mine.txt"],
    ],
)
def test_the_newest_is_that_of_the_latest_iteration(names, tmp_path):
    """By its name: the clock went backwards while these were written."""
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(age, age))
    (tmp_path / ".iteration=11.ckpt.writing").touch()
    assert [path.name for path in checkpoints_in(tmp_path)] == names[:3]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_checkpoint_is_named_with_the_one_before(damage, tmp_path):
    older, path = tmp_path / "iteration=2.ckpt", tmp_path / "iteration=3.ckpt"
    for file in (older, path):
        AtomicCheckpointIO().save_checkpoint(STATE, file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flipped": data, "cut": data[:-100], "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"^--ckpt_path .*3\.ckpt is damaged .*use {older}$"):
        read_checkpoint(path)


def test_a_checkpoint_that_is_not_there():
    with pytest.raises(ValueError, match=r"^--ckpt_path nowhere\.ckpt: there is no such"):
        read_checkpoint(Path("nowhere.ckpt"))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, trace = tmp_path / "downloaded.ckpt", tmp_path / "trace"
    torch.save({"callbacks": Hostile(trace)}, path)
    with pytest.raises(ValueError, match=r"^--ckpt_path .*loading it could run code"):
        read_checkpoint(path)
    assert not trace.exists()


# ---- shards


def test_shards_are_read(shards):
    assert read_checkpoint(shards) == {"epoch": 3}
    assert set(read_index(shards).state_dict_metadata) == {
        "model.weight",
        "model.half",
        "optimizer.0.1",
    }


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "index", "rest"])
def test_damaged_shards_are_noticed(damage, shards):
    [shard] = shards.glob("*.distcp")
    file = {"index": shards / INDEX, "rest": shards / META}.get(damage, shard)
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    if damage == "gone":
        shard.unlink()
    with pytest.raises(ValueError, match=r"^--ckpt_path .* is damaged"):
        read_checkpoint(shards)


def hostile_index(shards, kind, trace):
    index = read_index(shards)
    if kind == "code":
        return {"state_dict_metadata": Hostile(trace)}
    if kind == "bytes":  # torch unpickles what is not a tensor, without restrictions
        index.state_dict_metadata["model.weight"] = BytesStorageMetadata()
    if kind == "outside":
        for place in index.storage_data.values():
            place.relative_path = f"../{place.relative_path}"
    return index


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("code", "asks for posix.mkdir"),
        ("bytes", "asks for .*BytesStorageMetadata"),
        ("outside", "points outside its folder"),
    ],
)
def test_a_hostile_index_is_refused(kind, says, shards, tmp_path):
    trace = tmp_path / "trace"
    (shards / INDEX).write_bytes(pickle.dumps(hostile_index(shards, kind, trace)))
    with pytest.raises(UnsafeIndexError, match=says):
        check_shards(shards)
    with pytest.raises(ValueError, match=rf"^--ckpt_path .*could run code.*{says}"):
        read_checkpoint(shards)
    strategy = FSDP2Strategy()
    strategy.broadcast = lambda path: path  # of one rank that is in no group
    with pytest.raises(ValueError, match=rf"^--ckpt_path .*holds more than tensors.*{says}"):
        strategy.load_checkpoint(shards)
    assert not trace.exists()


def test_something_else_is_no_index(shards):
    (shards / INDEX).write_bytes(pickle.dumps({"state_dict_metadata": {}}))
    with pytest.raises(ValueError, match="no index of shards"):
        read_index(shards)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"^--ckpt_path .* is damaged"):
        read_checkpoint(tmp_path)
    shutil.rmtree(tmp_path)
