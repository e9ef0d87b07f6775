"""Checkpoints compared on disk: the numbers, what matches what, and what memory it takes."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import subspace_angles
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlsgd.analysis.checkpoint_files import Opened, match, open_checkpoint
from rlsgd.analysis.comparison import Comparison
from rlsgd.analysis.first_look import first_look
from rlsgd.analysis.measures import Measures
from rlsgd.analysis.tensor_update import InitialMatrix, measure

QUERY = "model.layers.0.self_attn.q_proj.weight"  # [32, 32]
UP = "model.layers.1.mlp.up_proj.weight"  # [64, 32]
DOWN = "model.layers.1.mlp.down_proj.weight"  # [32, 64]
NORM = "model.norm.weight"  # [32]
EMBEDDING = "model.embed_tokens.weight"
Weights = dict[str, Tensor]


def weights_of(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def save(weights: Weights, path: Path) -> str:
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    return str(path)


def noisy(weights: Weights, seed: int = 0, scale: float = 1e-3) -> Weights:
    """Random changes in a third of the entries."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: weight
        + scale
        * torch.randn(weight.shape, generator=generator)
        * (torch.rand(weight.shape, generator=generator) < 1 / 3)
        for name, weight in weights.items()
    }


def analyse(base: object, *tuned: object, allow_missing: bool = False, **settings) -> dict:
    names = [str(path) for path in tuned]
    opened = Opened.open(str(base), names, allow_missing=allow_missing)
    return Comparison(opened, Measures(**settings)).run()


@pytest.fixture
def tuned(tiny_llama: Path, tmp_path: Path) -> str:
    return save(noisy(weights_of(tiny_llama)), tmp_path / "tuned.safetensors")


def test_every_number_of_a_matrix_equals_numpys(tiny_llama: Path, tuned: str):
    """By full decompositions in float64 and by sorting, with none of rlsgd's functions."""
    rank, alpha = 5, 0.25
    record = analyse(tiny_llama, tuned, rank_k=rank, alpha=alpha, tolerances=(1e-3,))
    before, after = weights_of(tiny_llama), load_file(tuned)
    for name in (QUERY, UP, DOWN):
        found = record["tuned"][0]["tensors"][name]
        w0, w = before[name].double().numpy(), after[name].double().numpy()
        delta = (after[name] - before[name]).double()
        size = w.size
        bf16 = after[name].bfloat16() != before[name].bfloat16()
        assert found["weights"] == size
        assert found["unchanged_bf16"] == 1 - int(bf16.sum()) / size
        assert found["unchanged_fp32"] == int((delta == 0).sum()) / size
        assert found["within_1e-3"] == int((delta.abs() <= 1e-3).sum()) / size
        assert found["displacement"] == pytest.approx(float(delta.norm()), rel=1e-6)
        ratio = float(delta.norm() / before[name].double().norm())
        assert found["relative_displacement"] == pytest.approx(ratio, rel=1e-6)
        assert found["largest_change"] == float(delta.abs().max())
        u0, s0, v0 = torch.linalg.svd(torch.from_numpy(w0), full_matrices=False)
        u, s, v = torch.linalg.svd(torch.from_numpy(w), full_matrices=False)
        drift = float((s - s0).norm() / s0.norm())
        assert found["spectral_drift"] == pytest.approx(drift, rel=1e-8)
        for side, first, second in (("left", u0, u), ("right", v0.mT, v.mT)):
            angles = subspace_angles(first[:, :rank].numpy(), second[:, :rank].numpy())
            degrees = [math.degrees(angle) for angle in angles]
            assert found[f"{side}_angle_max_degrees"] == pytest.approx(max(degrees), rel=1e-8)
            mean = sum(degrees) / rank
            assert found[f"{side}_angle_mean_degrees"] == pytest.approx(mean, rel=1e-8)
        d = torch.linalg.svdvals(delta)
        p = d / d.sum()
        assert found["entropy_rank"] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-8)
        assert found["stable_rank"] == pytest.approx(float((d**2).sum() / d[0] ** 2), rel=1e-8)
        energy = (d**2).cumsum(0) / (d**2).sum()
        assert found["leading_energy"] == pytest.approx(float(energy[rank - 1]), rel=1e-8)
        count = int((energy < 0.99).sum()) + 1
        assert found["effective_rank"] == count
        assert found["effective_rank_percent"] == 100 * count / min(w.shape)
        assert found["numerical_rank"] == int(torch.linalg.matrix_rank(delta.float()))
        best = (u0[:, :rank] * s0[:rank] @ v0[:rank]).abs().flatten()
        kept = round(alpha * size)
        for mask, chosen in (
            ("principal", best.argsort(descending=True)[:kept]),
            ("low_magnitude", torch.from_numpy(w0).abs().flatten().argsort()[:kept]),
        ):
            both = int(bf16.flatten()[chosen].sum())
            assert found[f"{mask}_overlap"] == both / int(bf16.sum())
            assert found[f"{mask}_overlap_by_chance"] == pytest.approx(alpha, rel=1e-12)


def test_groups_add_counts_and_average_matrices(tiny_llama: Path, tuned: str):
    (found,) = analyse(tiny_llama, tuned)["tuned"]
    tensors, total = found["tensors"], found["total"]
    assert found["dtypes"] == {"float32": total["weights"]}
    weights = sum(part["weights"] for part in tensors.values())
    unchanged = sum(part["unchanged_fp32"] * part["weights"] for part in tensors.values())
    assert total["weights"] == weights
    assert total["unchanged_fp32"] == pytest.approx(unchanged / weights, rel=1e-12)
    matrices = [part for part in tensors.values() if "effective_rank" in part]
    assert len(matrices) == 1 + 2 * 7
    mean = sum(part["spectral_drift"] for part in matrices) / len(matrices)
    assert total["spectral_drift"] == pytest.approx(mean, rel=1e-12)
    distance = math.sqrt(sum(part["displacement"] ** 2 for part in tensors.values()))
    assert total["displacement"] == pytest.approx(distance, rel=1e-12)
    assert found["kinds"]["norm"]["tensors"] == 5
    assert "effective_rank" not in found["kinds"]["norm"]
    assert list(found["layers"]) == ["0", "1", "None"]
    assert found["kinds"]["attention_q"]["effective_rank"] == pytest.approx(
        sum(tensors[n]["effective_rank"] for n in tensors if "q_proj" in n) / 2
    )


SHARE = re.compile("unchanged|within|bf16_difference")


def test_without_change_every_measure_is_zero_or_undefined(tiny_llama: Path):
    total = analyse(tiny_llama, tiny_llama)["tuned"][0]["total"]
    ones = {name for name, value in total.items() if SHARE.search(name)}
    assert {total[name] for name in ones} == {1.0}
    undefined = {name for name, value in total.items() if value is None}
    assert undefined == {
        f"{mask}_overlap{chance}"
        for mask in ("principal", "low_magnitude")
        for chance in ("", "_by_chance")
    }
    # angles of a subspace with itself are the rounding of its basis
    assert total.pop("left_angle_max_degrees") < 1e-10
    assert total.pop("right_angle_max_degrees") < 1e-10
    rest = total.keys() - ones - undefined - {"tensors", "weights"}
    assert {total[n] for n in rest if "angle" not in n} == {0}


def test_spectra_can_be_left_out(tiny_llama: Path, tuned: str):
    found = analyse(tiny_llama, tuned)["tuned"][0]["tensors"][UP]
    fast = analyse(tiny_llama, tuned, spectra=False)["tuned"][0]["tensors"][UP]
    assert "low_magnitude_overlap" in fast and "effective_rank" not in fast
    assert fast.items() <= found.items()


def test_shards_and_order_do_not_matter(tiny_llama: Path, tuned: str, tmp_path: Path):
    weights = load_file(tuned)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.load_state_dict(weights, strict=False)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    # safetensors sorts the names within a file, so the order comes from the index
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    reordered = open_checkpoint(str(tmp_path / "sharded"), "TUNED")
    assert list(reordered.files) != sorted(reordered.files) or index.exists()
    expected = analyse(tiny_llama, tuned)["tuned"][0]
    found = analyse(tiny_llama, tmp_path / "sharded")["tuned"][0]
    assert expected.pop("path") != found.pop("path")
    assert found == expected


def test_files_in_another_order_match_alike(tiny_llama: Path, tuned: str):
    base, other = (open_checkpoint(str(path), "BASE") for path in (tiny_llama, tuned))
    expected = match(base, other, ("a", "b"), allow_missing=False)
    other.files = dict(reversed(other.files.items()))
    assert match(base, other, ("a", "b"), allow_missing=False) == expected
    assert len(expected.names) == len(base.files)


def test_storage_in_another_dtype_is_no_update(tiny_llama: Path, tmp_path: Path):
    weights = weights_of(tiny_llama)
    half = {name: weight.bfloat16() for name, weight in weights.items()}
    narrow = save(half, tmp_path / "bf16.safetensors")
    wide = save({n: w.float() for n, w in half.items()}, tmp_path / "wide.safetensors")
    for base, tuned in ((tiny_llama, narrow), (narrow, wide), (wide, narrow)):
        record = analyse(base, tuned, spectra=False)
        assert record["tuned"][0]["total"]["unchanged_fp32"] == 1.0
        assert record["tuned"][0]["total"]["displacement"] == 0.0
    assert record["base"]["dtypes"].keys() == {"float32"}
    assert record["tuned"][0]["dtypes"].keys() == {"bfloat16"}
    # a float32 checkpoint is not compared in bfloat16
    total = analyse(narrow, tiny_llama, spectra=False)["tuned"][0]["total"]
    assert total["unchanged_bf16"] == 1.0 and total["unchanged_fp32"] < 0.1


def test_tied_heads_are_counted_once_wherever_they_are_stored(tiny_llama: Path, tmp_path: Path):
    weights = weights_of(tiny_llama)
    assert "lm_head.weight" not in weights
    changed = noisy(weights)
    both = {**changed, "lm_head.weight": changed[EMBEDDING].clone()}
    plain = save(changed, tmp_path / "plain.safetensors")
    stored = save(both, tmp_path / "stored.safetensors")
    base = {**weights, "lm_head.weight": weights[EMBEDDING].clone()}
    stored_base = save(base, tmp_path / "base.safetensors")
    expected = analyse(tiny_llama, plain)["tuned"][0]["total"]
    for first, second in ((tiny_llama, stored), (stored_base, plain), (stored_base, stored)):
        (found,) = analyse(first, second)["tuned"]
        assert found["total"] == expected
        assert found["tied_heads_left_out"] == ["lm_head.weight"]
    untied = {**changed, "lm_head.weight": changed[EMBEDDING] + 1}
    loose = save(untied, tmp_path / "untied.safetensors")
    found = analyse(stored_base, loose)["tuned"][0]
    assert found["tied_heads_left_out"] == []
    assert found["kinds"]["head"]["unchanged_fp32"] == 0.0
    with pytest.raises(ValueError, match=r"^TUNED .* has lm_head\.weight, which BASE lacks"):
        analyse(tiny_llama, loose)


def test_missing_and_extra_tensors_are_listed(tiny_llama: Path, tmp_path: Path):
    weights = weights_of(tiny_llama)
    changed = noisy(weights)
    for name in (UP, NORM):
        del changed[name]
    path = save({**changed, "adapter.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as raised:
        analyse(tiny_llama, path)
    message = str(raised.value)
    assert message.startswith(f"TUNED {path}: lacks {UP}, {NORM} of BASE {tiny_llama}; has adapter")
    assert "--allow-missing" in message
    found = analyse(tiny_llama, path, allow_missing=True)["tuned"][0]
    assert found["only_in_base"] == [UP, NORM]
    assert found["only_in_tuned"] == ["adapter.weight"]
    assert found["tensors"].keys() == changed.keys()


def test_other_shapes_are_refused_also_where_tensors_may_be_missing(
    tiny_llama: Path, tmp_path: Path
):
    weights = weights_of(tiny_llama)
    weights[QUERY], weights[NORM] = torch.zeros(32, 31), torch.zeros(33)
    path = save(weights, tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as raised:
        analyse(tiny_llama, path, allow_missing=True)
    assert f"{QUERY} (32, 31) instead of (32, 32)" in str(raised.value)
    assert f"{NORM} (33,) instead of (32,)" in str(raised.value)
    assert str(raised.value).startswith(f"TUNED {path}: shapes differ")


def test_nothing_in_common_is_refused(tiny_llama: Path, tmp_path: Path):
    path = save({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"^TUNED .* has no tensor in common with BASE"):
        analyse(tiny_llama, path, allow_missing=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((32,), math.nan), "TUNED .*norm.weight holds values that are not finite"),
        (torch.ones(32).to(torch.float8_e4m3fn), "TUNED .* is stored as float8_e4m3fn"),
    ],
)
def test_weights_that_cannot_be_compared_are_refused(
    tiny_llama: Path, tmp_path: Path, value: Tensor, message: str
):
    path = save({**weights_of(tiny_llama), NORM: value}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        analyse(tiny_llama, path, spectra=False)


def test_integers_are_no_weights(tiny_llama: Path, tmp_path: Path):
    base = {**weights_of(tiny_llama), "model.positions": torch.arange(4)}
    first, second = (save(base, tmp_path / f"{i}.safetensors") for i in range(2))
    found = analyse(first, second, spectra=False)["tuned"][0]
    assert found["not_measured"] == ["model.positions"]
    assert "model.positions" not in found["tensors"]


def test_overlap_between_seeds_by_hand(tmp_path: Path):
    base = {"a.weight": torch.ones(10), "b.weight": torch.ones(10)}
    changes = {  # which of a, which of b
        "one": ([0, 1, 2, 3, 4], [0]),
        "two": ([3, 4, 5, 6], [0, 1]),
        "three": ([], []),
    }
    for name, (of_a, of_b) in changes.items():
        tuned = {key: weight.clone() for key, weight in base.items()}
        tuned["a.weight"][of_a] += 1
        tuned["b.weight"][of_b] += 1
        tuned["b.weight"][9] += 1e-4  # invisible in bf16
        save(tuned, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in changes]
    record = analyse(save(base, tmp_path / "base.safetensors"), *paths)
    places = [(pair["first"], pair["second"]) for pair in record["pairs"]]
    assert places == [(str(paths[i]), str(paths[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    chance = 5 * 4 / 10 + 1 * 2 / 10  # entries of each tensor, independent
    assert record["pairs"][0]["total"] == pytest.approx(
        {
            "changed_first": 6 / 20,
            "changed_second": 6 / 20,
            "overlap_of_first": 3 / 6,
            "overlap_of_first_by_chance": chance / 6,
            "overlap_of_second": 3 / 6,
            "overlap_of_second_by_chance": chance / 6,
            "jaccard": 3 / 9,
            "jaccard_by_chance": chance / (12 - chance),
        }
    )
    assert record["pairs"][1]["total"]["overlap_of_second"] is None
    assert record["pairs"][1]["total"]["overlap_of_first"] == 0.0


def test_several_are_measured_as_each_alone(tiny_llama: Path, tmp_path: Path):
    weights = weights_of(tiny_llama)
    paths = [save(noisy(weights, seed), tmp_path / f"{seed}.safetensors") for seed in (0, 1)]
    half = {name: weight.bfloat16() for name, weight in noisy(weights, 2).items()}
    paths.append(save(half, tmp_path / "2.safetensors"))
    together = analyse(tiny_llama, *paths)
    for path, found in zip(paths, together["tuned"], strict=True):
        assert found == analyse(tiny_llama, path)["tuned"][0]
    assert len(together["pairs"]) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_k": 0}, "^--rank-k 0"),
        ({"alpha": 0.0}, "^--alpha 0"),
        ({"alpha": 1.0}, "^--alpha 1"),
        ({"alpha": math.nan}, "^--alpha nan"),
        ({"tolerances": (1e-5, -1.0)}, "^--tolerances -1"),
        ({"tolerances": (math.inf,)}, "^--tolerances inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Measures(**settings)


MEASURE_MEMORY = """
import sys
from pathlib import Path
from rlsgd.analysis.checkpoint_files import Opened
from rlsgd.analysis.comparison import Comparison
from rlsgd.analysis.measures import Measures

def peak():  # of this program; ru_maxrss would begin with that of the one that started it
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

small, base, tuned = sys.argv[1:]
# libraries and buffers that are there once
Comparison(Opened.open(small, [small]), Measures()).run()
before = peak()
Comparison(Opened.open(base, [tuned]), Measures()).run()
print(peak() - before)
"""


def test_no_tensor_is_kept_of_what_was_measured():
    """Small ones would hold the heap open between the large blocks freed around them."""
    initial, measures = torch.ones(6, 5), Measures(rank_k=2)
    update = measure(initial + 1, initial, InitialMatrix.of(initial, measures), measures)
    assert "tensor" not in repr(update)


def test_memory_is_that_of_a_few_tensors(tmp_path: Path):
    """Two models of 40 tensors of 2 MiB each. A tensor this small is whole in float64 at times."""
    shape, count = (8192, 64), 40
    one = save({"layers.0.mlp": torch.randn(64, 64)}, tmp_path / "one.safetensors")
    base = {f"layers.{i}.mlp": torch.randn(shape) for i in range(count)}
    paths = [save(base, tmp_path / "base.safetensors")]
    paths.append(save({n: w + 1e-3 for n, w in base.items()}, tmp_path / "tuned.safetensors"))
    model = Path(paths[0]).stat().st_size
    command = [sys.executable, "-c", MEASURE_MEMORY, one, *paths]
    # Blocks are given back as they are freed, so that the peak is what was in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    grown = int(result.stdout) / (model / count)
    assert 2 < grown < 16, f"{grown:.1f} tensors of {2 * count}"


# ---- the first look


@pytest.mark.parametrize(
    ("stored", "trained"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_the_first_look_counts_what_the_whole_comparison_counts(
    stored: torch.dtype, trained: torch.dtype, tiny_llama: Path, tmp_path: Path
):
    """Two implementations; zeros of either sign, ties of rounding and tiny weights among them."""
    base = {name: weight.to(stored) for name, weight in weights_of(tiny_llama).items()}
    tuned = {name: weight.to(trained) for name, weight in noisy(base, scale=1e-3).items()}
    special = torch.tensor([0.0, -0.0, 0.0, 1.0, 1 + 2**-8, 1 + 2**-8, 1e-40, 1e-40, 3.0])
    moved = torch.tensor([-0.0, 0.0, 0.0, 1 + 2**-8, 1.0, 1 + 2**-7, 0.0, 1.1e-40, 3.0])
    base["special.weight"], tuned["special.weight"] = special.to(stored), moved.to(trained)
    base["steps"] = tuned["steps"] = torch.arange(3)
    paths = [save(base, tmp_path / "b.safetensors"), save(tuned, tmp_path / "t.safetensors")]
    opened = Opened.open(paths[0], paths[1:])
    found = first_look(opened.base, opened.tuned[0], opened.matches[0], ("BASE", "TUNED"))
    expected = analyse(*paths, spectra=False)["tuned"][0]
    assert found["kinds"].keys() == expected["kinds"].keys()
    for kind, record in {**found["kinds"], "total": found["total"]}.items():
        whole = {**expected["kinds"], "total": expected["total"]}[kind]
        for key in ("weights", "unchanged_fp32", "unchanged_bf16"):
            assert record[key] == whole[key], (kind, key)
        for key in ("displacement", "relative_displacement"):
            assert record[key] == pytest.approx(whole[key], rel=1e-12), (kind, key)


@pytest.mark.parametrize("role", ["BASE", "TUNED"])
def test_the_first_look_refuses_what_is_not_finite(role: str, tmp_path: Path):
    models = {"BASE": {"w": torch.ones(70_000)}, "TUNED": {"w": torch.ones(70_000)}}
    models[role]["w"][69_999] = torch.nan
    paths = [save(model, tmp_path / f"{name}.safetensors") for name, model in models.items()]
    opened = Opened.open(paths[0], paths[1:])
    with pytest.raises(ValueError, match=f"^{role}: w holds values that are not finite"):
        first_look(opened.base, opened.tuned[0], opened.matches[0], ("BASE", "TUNED"))
