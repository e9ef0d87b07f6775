"""`rlsgd analyze` from the command line, on what a run of `rlsgd fit` leaves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlsgd.cli.main import main
from rlsgd.models.loading import EMBEDDED

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs with the callbacks, the exported folder `hf` and the checkpoint `last.ckpt`."""
    folder = tmp_path_factory.mktemp("run")
    callbacks = [
        "rlsgd.callbacks.UpdateSparsity",
        "rlsgd.callbacks.EffectiveRank",
        {"class_path": "rlsgd.callbacks.HFExport", "init_args": {"folder": str(folder / "hf")}},
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": str(folder), "save_last": True},
        },
    ]
    listed = json.dumps([c if isinstance(c, dict) else {"class_path": c} for c in callbacks])
    logger = {"save_dir": str(folder), "name": "", "version": ""}
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger}
    arguments = [
        *("fit", "--config", "configs/grpo_embedded.yaml", "--trainer.accelerator", "cpu"),
        *(f"--trainer.default_root_dir={folder}", "--trainer.max_epochs", "2"),
        *("--trainer.enable_checkpointing", "true", f"--trainer.callbacks={listed}"),
        *("--trainer.enable_progress_bar", "false"),
        *(f"--trainer.logger=[{json.dumps(csv)}]", "--data.val_problems", "4"),
        *("--data.prompts_per_epoch", "4", "--data.group_size", "4"),
    ]
    assert main(arguments) == 0
    return folder


def last_line(path: Path) -> dict:
    return json.loads(path.read_text().splitlines()[-1])


@pytest.mark.parametrize("tuned", ["hf", "last.ckpt"])
def test_the_numbers_are_those_of_the_callbacks(
    run: Path, tuned: str, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    assert main(["analyze", "embedded", str(run / tuned), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    (found,) = record["tuned"]
    sparsity = last_line(run / "update_sparsity.jsonl")
    ranks = last_line(run / "effective_rank.jsonl")["tensors"]
    assert found["tensors"].keys() == sparsity["tensors"].keys()
    for name, measures in sparsity["tensors"].items():
        assert measures.items() <= found["tensors"][name].items()
    groups = [(sparsity["total"], found["total"])]
    for kind in ("kinds", "layers"):
        assert found[kind].keys() == sparsity[kind].keys()
        groups += [(sparsity[kind][name], found[kind][name]) for name in found[kind]]
    for expected, group in groups:  # displacements were added up in another order
        shared = {name: group[name] for name in expected}
        assert shared == pytest.approx(expected, rel=1e-14)
    assert 0 < found["total"]["unchanged_bf16"] < 1, "the run must have changed something"
    for name, measures in ranks.items():
        assert measures.items() <= found["tensors"][name].items()
    assert {n for n, t in found["tensors"].items() if "effective_rank" in t} == ranks.keys()


def test_files_and_tables(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "analysis"
    settings = ["--tolerances", "1e-6", "1e-3", "--rank-k", "3", "--alpha", "0.2"]
    assert main(["analyze", "embedded", str(run / "hf"), "--out", str(out), *settings]) == 0
    record = json.loads((out / "analysis.json").read_text())
    assert record["settings"] == {
        "tolerances": [1e-6, 1e-3],
        "rank_k": 3,
        "alpha": 0.2,
        "spectra": True,
    }
    assert record["base"]["path"] == "embedded" and record["pairs"] == []
    names = {
        *("unchanged_bf16.png", "effective_rank_percent.png", "spectral_drift.png"),
        *("principal_overlap.png", "low_magnitude_overlap.png", "right_angle_mean_degrees.png"),
    }
    assert {path.name for path in out.iterdir()} == names | {"analysis.json"}
    for name in names:
        assert (out / name).read_bytes().startswith(PNG)
    shown = capsys.readouterr().out
    total = record["tuned"][0]["total"]
    for text in (
        "attention_q",
        f"{total['weights']:,}",
        "BASE float32, TUNED float32",
        f"1e-6: {100 * total['within_1e-6']:.4g} %",
        f"1e-3: {100 * total['within_1e-3']:.4g} %",
        "masks hold 0.2 of the entries; subspaces have rank 3",
    ):
        assert text in shown


def test_several_tuned_checkpoints(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "other.safetensors"
    save_file({n: w * 1.5 for n, w in load_file(EMBEDDED / "model.safetensors").items()}, other)
    tuned = [str(run / "hf"), str(other)]
    assert main(["analyze", "embedded", *tuned, "--no-spectra", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "analysis.json").read_text())
    assert [found["path"] for found in record["tuned"]] == tuned
    pair = record["pairs"][0]["total"]
    assert pair["changed_second"] > 0.99  # but zeros
    assert pair["overlap_of_first"] == pytest.approx(pair["overlap_of_first_by_chance"], abs=0.01)
    assert "weights changed in both" in capsys.readouterr().out
    pngs = {path.name for path in tmp_path.glob("*.png")}
    assert pngs == {
        f"{measure}_{number}.png"
        for measure in ("unchanged_bf16", "low_magnitude_overlap")
        for number in (1, 2)
    }


def pickled(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path)


def cut_short(path: Path) -> None:
    path.write_bytes((EMBEDDED / "model.safetensors").read_bytes()[:1000])


def malicious(path: Path) -> None:
    torch.save({"state_dict": {"policy.a": torch.ones(1)}, "extra": Path("x")}, path)


def no_policy(path: Path) -> None:
    torch.save({"state_dict": {"model.a": torch.ones(1)}}, path)


def garbage(path: Path) -> None:
    path.write_bytes(b"no checkpoint")


def sharded(path: Path) -> None:
    path.mkdir()
    (path / ".metadata").touch()


def lost_shard(path: Path) -> None:
    path.mkdir()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "make", "fragments"),
    [
        ("x.bin", pickled, ["pickled weights are not read"]),
        ("x.safetensors", cut_short, ["could not be read"]),
        ("x.ckpt", malicious, ["could not be read", "HFExport"]),
        ("x.ckpt", no_policy, ["no tensors of a policy", "HFExport"]),
        ("x.ckpt", garbage, ["could not be read", "HFExport"]),
        ("x", sharded, ["sharded checkpoint of Lightning", "HFExport"]),
        ("x", lost_shard, ["model-00001-of-00002.safetensors, which is not there"]),
        ("x", Path.mkdir, ["holds neither"]),
        ("no/such/folder", lambda path: None, ["no such folder"]),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_it(name, make, fragments, tmp_path, capsys):
    path = tmp_path / name
    make(path)
    for role, arguments in (("TUNED", ["embedded", str(path)]), ("BASE", [str(path), "embedded"])):
        assert main(["analyze", *arguments]) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith(f"rlsgd analyze: error: {role} {path}")
        assert all(fragment in shown.err for fragment in fragments)
        assert shown.out == ""


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--rank-k", "0"], "--rank-k 0"),
        (["--alpha", "1"], "--alpha 1"),
        (["--tolerances", "-1"], "--tolerances -1"),
        (["--out", "configs/grpo_embedded.yaml"], "--out configs/grpo_embedded.yaml"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_opened(arguments, flag, capsys):
    assert main(["analyze", "no/such/base", "no/such/tuned", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"rlsgd analyze: error: {flag}")


def test_unknown_flags_and_missing_arguments_stop_the_parser(capsys):
    for arguments in ([], ["embedded"], ["embedded", "embedded", "--rank", "x"]):
        assert main(["analyze", *arguments]) == 2
