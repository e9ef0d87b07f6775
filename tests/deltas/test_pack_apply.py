"""Packing and applying: every bit comes back, and nothing wrong is ever written."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlsgd.core.checkpoints import LazyTensors
from rlsgd.deltas.apply import apply, check_chain
from rlsgd.deltas.pack import DeltaWriter, pack
from rlsgd.deltas.reader import Delta
from tests.deltas.delta_models import assert_same, example, raw, saved, there_and_back

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
NAMES = ["a.weight", "b.weight", "c:values", "file:x", "d/e", "ünïcode"]
SPECIAL = [0.0, -0.0, 1.0, 1.0 + 2**-9, torch.nan, torch.inf, -torch.inf, 1e-45, 3e38, 1e30]


@st.composite
def tensor(draw: st.DrawFn) -> Tensor:
    shape = draw(st.sampled_from([(), (0,), (2, 0), (1,), (3,), (2, 2), (40,)]))
    values = st.lists(
        st.sampled_from(SPECIAL),
        min_size=torch.Size(shape).numel(),
        max_size=torch.Size(shape).numel(),
    )
    dtype = draw(st.sampled_from(DTYPES))
    flat = torch.tensor(draw(values), dtype=torch.float64)
    return (flat if dtype.is_floating_point else flat == 0).to(dtype).reshape(shape)


CHECKPOINTS = st.dictionaries(st.sampled_from(NAMES), tensor(), max_size=4)


@settings(deadline=None, max_examples=60)
@given(CHECKPOINTS, CHECKPOINTS)
def test_any_checkpoint_is_made_of_any_other(base: dict, tuned: dict):
    with tempfile.TemporaryDirectory() as folder:
        result, delta = there_and_back(base, tuned, Path(folder))
        assert_same(result, tuned)
        kept = [name for name in base if name in tuned]
        for name in kept:
            entry = delta.manifest.tensors[name]
            if base[name].dtype == tuned[name].dtype and base[name].shape == tuned[name].shape:
                width = tuned[name].element_size()
                one, other = raw(base[name]), raw(tuned[name])
                starts = range(0, len(one), width)
                assert entry.changed == sum(
                    one[i : i + width] != other[i : i + width] for i in starts
                )


def test_how_each_tensor_is_stored(tmp_path: Path):
    base, tuned = example()
    result, delta = there_and_back(base, tuned, tmp_path)
    assert_same(result, tuned)
    stored = {name: (e.kind, e.changed) for name, e in delta.manifest.tensors.items()}
    assert stored == {
        "same": ("same", 0),
        "patched": ("patch", 2),
        "replaced": ("whole", 4),
        "widened": ("patch", 1),
        "reshaped": ("whole", 4),
        "counter": ("whole", 1),
        "mask": ("same", 0),
        "new": ("whole", 1),
        "tied": ("copy", 100),
    }
    assert delta.manifest.removed.keys() == {"gone"}
    with safe_open(str(tmp_path / "delta.safetensors"), "pt") as file:  # any reader can list it
        assert {n for n in file.keys() if n.startswith("patched")} == {  # noqa: SIM118
            "patched:positions",
            "patched:values",
        }


def test_checksums_are_those_of_the_contents_however_they_lie_in_files(
    tiny_llama: Path, tmp_path: Path
):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    one, many = LazyTensors.open(tiny_llama), LazyTensors.open(tmp_path / "sharded")
    assert len(set(many.files.values())) > 2
    backwards = dict(reversed(one.files.items()))
    for index, base in enumerate((one, many, LazyTensors(backwards))):
        pack(base, many, tmp_path / f"{index}.safetensors")
        manifest = Delta(tmp_path / f"{index}.safetensors").manifest
        digests = {
            name: hashlib.sha256(
                json.dumps(["F32", list(one[name].shape)]).encode() + raw(one[name])
            ).hexdigest()
            for name in one.files
        }
        whole = hashlib.sha256(json.dumps([[n, digests[n]] for n in sorted(digests)]).encode())
        assert manifest.base == manifest.result == whole.hexdigest()


def test_a_sharded_model_stays_sharded_and_loads(tiny_llama: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    with torch.no_grad():
        for weight in model.parameters():
            weight.view(-1)[::50] *= 1.5
    model.save_pretrained(tmp_path / "tuned")
    base, tuned = (LazyTensors.open(tmp_path / name) for name in ("base", "tuned"))
    pack(base, tuned, tmp_path / "delta.safetensors")
    files = {"config.json": (tmp_path / "base" / "config.json").read_bytes()}
    apply(base, [Delta(tmp_path / "delta.safetensors")], tmp_path / "out", files=files)
    result = LazyTensors.open(tmp_path / "out")
    assert_same(result, {name: tuned[name] for name in tuned.files})
    together = {frozenset(n for n in base.files if base.files[n] == f) for f in base.files.values()}
    assert together == {
        frozenset(n for n in result.files if result.files[n] == f) for f in result.files.values()
    }
    again, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values())
    for name, weight in again.named_parameters():
        assert torch.equal(weight, model.get_parameter(name))


def test_a_view_in_bfloat16_holds_what_shows_in_it(tmp_path: Path):
    base = {"w": torch.ones(200), "steps": torch.tensor([1, 2])}
    tuned = {"w": base["w"] + 2**-20, "steps": torch.tensor([1, 3])}
    tuned["w"][7] = 1.5
    start = saved(base, tmp_path / "base.safetensors")
    pack(
        start,
        saved(tuned, tmp_path / "tuned.safetensors"),
        tmp_path / "delta.safetensors",
        dtype="bfloat16",
    )
    delta = Delta(tmp_path / "delta.safetensors")
    assert delta.manifest.tensors["w"].changed == 1
    apply(start, [delta], tmp_path / "out")
    expected = {"w": tuned["w"].bfloat16(), "steps": tuned["steps"]}
    assert_same(LazyTensors.open(tmp_path / "out"), expected)


# ---- damage


def test_a_damaged_byte_is_always_found(tmp_path: Path):
    base = {"w": torch.arange(9.0), "v": torch.zeros(1)}
    _, delta = there_and_back(base, {"w": base["w"] + torch.eye(9)[2], "v": base["v"]}, tmp_path)
    data = bytearray(delta.path.read_bytes())
    with delta.path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(data):
            for flip in (0xFF, 0x20):  # 0x20 is the case of a letter
                file.seek(place)
                file.write(bytes([byte ^ flip]))
                with pytest.raises(ValueError, match="damaged"):
                    Delta(delta.path)
            file.seek(place)
            file.write(bytes([byte]))
    assert Delta(delta.path).manifest == delta.manifest


def test_a_file_cut_short_or_with_more_behind_it_is_refused(tmp_path: Path):
    _, delta = there_and_back({"w": torch.zeros(9)}, {"w": torch.ones(9)}, tmp_path)
    data = delta.path.read_bytes()
    delta.path.write_bytes(data + b"\0")
    for length in reversed(range(len(data) + 2)):
        os.truncate(delta.path, length)
        if length != len(data):
            with pytest.raises(ValueError, match="damaged"):
                Delta(delta.path)
        else:
            assert Delta(delta.path).manifest == delta.manifest


def test_a_model_is_no_delta(tiny_llama: Path):
    with pytest.raises(ValueError, match="is not a delta"):
        Delta(tiny_llama / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["../config.json", "a/config.json", "/config.json", "run.py", ".."]
)
def test_a_file_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path):
    with DeltaWriter(tmp_path / "delta.safetensors") as writer:
        writer.add_files({name: b"{}"}, {})
        writer.close()
    with pytest.raises(ValueError, match="would write a file called"):
        Delta(tmp_path / "delta.safetensors")


def test_a_patch_that_claims_too_much_is_refused(tmp_path: Path):
    """A file may be undamaged and yet have been made to fill the memory."""
    base = saved({"w": torch.zeros(64)}, tmp_path / "base.safetensors")
    for wrong in ({"changed": 65}, {"positions": 9}, {"changed": 2}, {"encoding": "pickle"}):
        with DeltaWriter(tmp_path / "delta.safetensors") as writer:
            writer.add("w", torch.eye(8).reshape(-1)[:64] * 0 + torch.eye(64)[3], base["w"])
            entry = writer.manifest.tensors["w"]
            writer.manifest.tensors["w"] = type(entry)(**{**vars(entry), **wrong})
            writer.close()
        with pytest.raises(ValueError):
            apply(base, [Delta(tmp_path / "delta.safetensors")], tmp_path / "out")
        assert not (tmp_path / "out").exists()


# ---- the wrong base, the wrong order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: base["patched"].view(-1)[99:].add_(1), "different: patched"),
        (lambda base: base.update(same=base["same"].reshape(3, 2)), "different: same"),
        (lambda base: base.update(same=base["same"].double()), "different: same"),
        (lambda base: base["gone"].mul_(2), "different: gone"),
        (lambda base: base.pop("mask"), "it lacks mask"),
        (lambda base: base.update(more=torch.zeros(1)), "it also has more"),
    ],
)
def test_another_base_is_refused_before_anything_is_written(change, message: str, tmp_path: Path):
    base, tuned = example()
    _, delta = there_and_back(base, tuned, tmp_path)
    change(base)
    other = saved(base, tmp_path / "other.safetensors")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"BASE is not the checkpoint.*{message}"):
        apply(other, [delta], tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


def chain(tmp_path: Path) -> tuple[list[dict[str, Tensor]], list[Delta]]:
    """Three checkpoints, and deltas 0 -> 1, 1 -> 2 and 0 -> 2."""
    first = {"w": torch.arange(80.0), "v": torch.zeros(4), "u": torch.zeros(40)}
    second = {"w": first["w"].clone(), "v": torch.ones(4), "x": first["w"].clone()}
    second["w"][3] = second["x"][3] = -1
    third = {"w": second["w"].bfloat16(), "v": torch.ones(4), "x": second["w"].clone()}
    third["w"][[3, 9]], third["x"][70] = 5, 6
    models = [first, second, third]
    files = [saved(model, tmp_path / f"{i}.safetensors") for i, model in enumerate(models)]
    deltas = []
    for a, b in ((0, 1), (1, 2), (0, 2)):
        pack(files[a], files[b], tmp_path / f"delta{a}{b}.safetensors")
        deltas.append(Delta(tmp_path / f"delta{a}{b}.safetensors"))
    return models, deltas


def test_a_chain_gives_what_its_last_delta_was_made_of(tmp_path: Path):
    models, (first, second, both) = chain(tmp_path)
    base = LazyTensors.open(tmp_path / "0.safetensors")
    for name, deltas in (("chain", [first, second]), ("direct", [both])):
        apply(base, deltas, tmp_path / name)
        assert_same(LazyTensors.open(tmp_path / name), models[2])
    apply(LazyTensors.open(tmp_path / "1.safetensors"), [second], tmp_path / "rest")
    assert_same(LazyTensors.open(tmp_path / "rest"), models[2])


def test_deltas_in_another_order_are_refused(tmp_path: Path):
    _, (first, second, both) = chain(tmp_path)
    base = LazyTensors.open(tmp_path / "0.safetensors")
    for wrong in ([second, first], [first, both], [first, first], [first, second, second]):
        with pytest.raises(ValueError, match="does not start from what"):
            apply(base, wrong, tmp_path / "out")
    with pytest.raises(ValueError, match="BASE is not"):
        apply(base, [second], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    check_chain([first, second])


# ---- interrupted


def stop_after(count: int):
    def progress(names: Iterable[str]) -> Iterator[str]:
        for index, name in enumerate(names):
            if index == count:
                raise KeyboardInterrupt
            yield name

    return progress


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path):
    base, tuned = example()
    _, delta = there_and_back(base, tuned, tmp_path)
    start, goal = (LazyTensors.open(tmp_path / f"{n}.safetensors") for n in ("base", "tuned"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def interrupt(progress) -> None:
        for run in (
            lambda: pack(start, goal, delta.path, progress=progress),
            lambda: pack(start, goal, tmp_path / "new.safetensors", progress=progress),
            lambda: apply(start, [delta], tmp_path / "out", overwrite=True, progress=progress),
            lambda: apply(start, [delta], tmp_path / "new", progress=progress),
        ):
            with pytest.raises(KeyboardInterrupt):
                run()
            assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
            assert not (tmp_path / "new").exists()

    interrupt(stop_after(3))

    calls = []

    def second_walk(names: Iterable[str]) -> Iterable[str]:
        """Checking the base is the first walk, writing the result the second."""
        calls.append(names)
        return names if len(calls) % 2 else stop_after(3)(names)

    with pytest.raises(KeyboardInterrupt):
        apply(start, [delta], tmp_path / "out", overwrite=True, progress=second_walk)
    with pytest.raises(KeyboardInterrupt):
        apply(start, [delta], tmp_path / "new", progress=second_walk)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "new").exists()


KILLED = """
import os, sys
from pathlib import Path
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.deltas.apply import apply
from rlsgd.deltas.pack import pack
from rlsgd.deltas.reader import Delta
folder = Path(sys.argv[1])
def dying(walk):
    walks = []
    def progress(names):
        walks.append(names)
        for index, name in enumerate(names):
            if len(walks) == walk and index == 3:
                os._exit(9)
            yield name
    return progress
base, tuned = (LazyTensors.open(folder / f"{name}.safetensors") for name in ("base", "tuned"))
delta = folder / "delta.safetensors"
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    apply(base, [Delta(delta)], folder / "out", overwrite=True, progress=dying(2))
else:
    pack(base, tuned, delta, progress=dying(1))
"""


def test_a_killed_process_leaves_what_was_there(tmp_path: Path):
    _, tuned = example()
    result, delta = there_and_back(*example(), tmp_path)
    data = delta.path.read_bytes()
    code = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(code, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 9
    assert delta.path.read_bytes() == data
    assert_same(result, tuned)


def test_an_existing_folder_is_replaced_only_if_asked(tmp_path: Path):
    base, tuned = example()
    _, delta = there_and_back(base, tuned, tmp_path)
    start = LazyTensors.open(tmp_path / "base.safetensors")
    (tmp_path / "out" / "stale.txt").write_text("of the old one")
    with pytest.raises(ValueError, match=r"OUT .* is there already"):
        apply(start, [delta], tmp_path / "out")
    apply(start, [delta], tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert_same(LazyTensors.open(tmp_path / "out"), tuned)
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="not a model folder"):
        apply(start, [delta], tmp_path / "notes", overwrite=True)
    saved(base, tmp_path / "notes" / "model.safetensors")
    with pytest.raises(ValueError, match="folder of BASE"):
        apply(LazyTensors.open(tmp_path / "notes"), [delta], tmp_path / "notes", overwrite=True)


# ---- memory

MEASURED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.deltas.apply import apply
from rlsgd.deltas.pack import pack
from rlsgd.deltas.reader import Delta
folder = Path(sys.argv[1])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def run(name, count):
    for part in ("base", "tuned"):
        (folder / name / part).mkdir(parents=True)
    base, tuned = {}, {}
    for index in range(count):
        for tensors, part in ((base, "base"), (tuned, "tuned")):
            weight = torch.zeros(1 << 20)
            if part == "tuned":
                weight[:: index + 1] += 1  # the first is stored whole, the others as patches
            tensors[str(index)] = folder / name / part / f"{index}.safetensors"
            save_file({str(index): weight}, tensors[str(index)])
    base, tuned = LazyTensors(base), LazyTensors(tuned)
    pack(base, tuned, folder / name / "delta")
    apply(base, [Delta(folder / name / "delta")], folder / name / "out")
run("small", 2)
before = peak()
run("large", 14)
print(peak() - before)
"""


def test_neither_model_is_ever_in_memory(tmp_path: Path):
    """A model of 56 MiB against one of 8: what grows is less than a fifth of the difference."""
    code = [sys.executable, "-c", MEASURED, str(tmp_path)]
    grown = int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)
    assert grown < 9 * 2**20
