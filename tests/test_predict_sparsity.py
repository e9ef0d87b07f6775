"""`rlsgd predict-sparsity`: its numbers are those of counted moves, whole and by layer."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlsgd.cli.main import main
from rlsgd.functional.updates import SparsityCounts, count_unchanged
from rlsgd.models.loading import EMBEDDED


def predicted(capsys, *arguments):
    assert main(["predict-sparsity", "embedded", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def moved(size, *, rounded):
    """Shares unchanged of the embedded weights after a move N(0, size^2), whole and of layer 1."""
    generator, parts = torch.Generator().manual_seed(0), {}
    for name, weight in load_file(EMBEDDED / "model.safetensors").items():
        weight = weight.float().bfloat16().float() if rounded else weight.float()
        step = size * torch.randn(weight.shape, generator=generator)
        parts[name] = count_unchanged(weight + step, weight, tolerances=(1e-5,))
    layer = [part for name, part in parts.items() if ".layers.1." in name]
    return [sum(p, SparsityCounts()) for p in (list(parts.values()), layer)]


@pytest.mark.parametrize("rounded", [False, True])
def test_equal_moves_on_the_grid_and_off_it(capsys, rounded):
    record = predicted(capsys, "--displacement", "0.05", "0.5", *["--round-base"] * rounded)
    assert record["on_grid"] == pytest.approx(1.0 if rounded else 1.36e-5, rel=0.01)
    for prediction in record["predictions"]:
        size = prediction["displacement"] / record["weights"] ** 0.5
        whole, layer = moved(size, rounded=rounded)
        assert whole.numel == record["weights"]
        for counts, found in ((whole, prediction["total"]), (layer, prediction["layers"]["1"])):
            shares = counts.fractions()
            assert found["unchanged_bf16"] == pytest.approx(shares["unchanged_bf16"], abs=0.004)
            assert found["within_tolerance"] == pytest.approx(shares["within_1e-5"], abs=0.004)


def test_a_pilots_proportions(capsys, tmp_path):
    """A pilot that moved one tensor: twice its length is twice its moves, and the rest stays."""
    weights = {n: w.float() for n, w in load_file(EMBEDDED / "model.safetensors").items()}
    name = "model.layers.0.mlp.up_proj.weight"
    generator = torch.Generator().manual_seed(0)
    step = 3e-5 * torch.randn(weights[name].shape, generator=generator)
    pilot = weights | {name: weights[name] + step}
    save_file(pilot, tmp_path / "pilot.safetensors")
    length = 2 * float((pilot[name].double() - weights[name].double()).norm())
    settings = ["--pilot", str(tmp_path / "pilot.safetensors"), "--displacement", f"{length}"]
    (found,) = predicted(capsys, *settings)["predictions"]
    counts = count_unchanged(weights[name] + 2 * step, weights[name], tolerances=(1e-5,))
    others = sum(w.numel() for n, w in weights.items() if n != name)
    total = others + weights[name].numel()
    assert found["layers"]["1"]["unchanged_bf16"] == 1.0
    for key, kept in (
        ("unchanged_bf16", int(counts.unchanged_bf16)),
        ("within_tolerance", int(counts.within["1e-5"])),
    ):
        assert found["total"][key] == pytest.approx((others + kept) / total, abs=2e-4)


def test_the_table(capsys):
    assert main(["predict-sparsity", "embedded", "--displacement", "0.236"]) == 0
    shown = capsys.readouterr().out
    assert "588,288 weights, 0.00136% of them bfloat16 numbers" in shown and "15.76" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--displacement", "0"], "--displacement 0: a length is above 0"),
        (["--displacement", "1", "--tolerance", "-1"], "--tolerance -1: 0 or more"),
        (["--displacement", "1", "--pilot", "embedded"], "--pilot embedded: it equals BASE"),
        (["--displacement", "1", "--pilot", "no/such/pilot"], "--pilot no/such/pilot"),
    ],
)
def test_bad_arguments_are_one_line(capsys, arguments, message):
    assert main(["predict-sparsity", "embedded", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith(f"rlsgd predict-sparsity: error: {message}")
