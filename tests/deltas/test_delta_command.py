"""`rlsgd delta`: folders that load, tables, and errors without a traceback."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlsgd.cli.main import main
from rlsgd.deltas.reader import Delta


@pytest.fixture
def tuned(tiny_llama: Path, tmp_path: Path) -> Path:
    """`tiny_llama` with one more in the first entry of each tensor, and other small files."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        for weight in model.parameters():
            weight.view(-1)[0] += 1
    model.save_pretrained(tmp_path / "tuned", max_shard_size="30KB")
    for path in tiny_llama.glob("tokenizer*"):
        (tmp_path / "tuned" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tuned" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "tuned" / "modeling_own.py").write_text("raise SystemExit('code is not carried')")
    return tmp_path / "tuned"


def delta(*arguments: object) -> int:
    return main(["delta", *map(str, arguments)])


def test_pack_inspect_and_apply(tiny_llama: Path, tuned: Path, tmp_path: Path, capsys):
    packed, out = tmp_path / "delta.safetensors", tmp_path / "out"
    assert delta("pack", tiny_llama, tuned, packed) == 0
    assert "total" in capsys.readouterr().out
    assert delta("inspect", packed, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    model = AutoModelForCausalLM.from_pretrained(tuned)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    assert found["total"] == {
        "tensors": len(sizes),
        "weights": sum(sizes.values()),
        "changed": len(sizes),
        "bytes": packed.stat().st_size,
        "dense_bytes": 4 * sum(sizes.values()),
        "changed_share": len(sizes) / sum(sizes.values()),
    }
    assert found["kinds"]["norm"]["tensors"] == found["kinds"]["norm"]["changed"] == 5
    assert found["kinds"]["norm"]["weights"] == 5 * 32
    stored = sum(row["bytes"] for row in found["kinds"].values())
    assert 0 < stored < found["bytes"]
    assert found["stored_files"] == ["chat_template.jinja"] and found["dtypes"] == ["F32"]

    assert delta("apply", tiny_llama, packed, out) == 0
    assert found["result"] in capsys.readouterr().out
    again = AutoModelForCausalLM.from_pretrained(out)
    for name, weight in model.named_parameters():
        assert torch.equal(again.get_parameter(name), weight)
    text = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".safetensors"}
    theirs = {n: (tuned / n).read_bytes() for n in text}
    assert text == theirs and "chat_template.jinja" in text and "tokenizer.json" in text
    assert "modeling_own.py" not in text


def test_the_bfloat16_view_loads_in_bfloat16(tiny_llama: Path, tuned: Path, tmp_path: Path):
    packed = tmp_path / "delta.safetensors"
    assert delta("pack", tiny_llama, tuned, packed, "--dtype", "bfloat16") == 0
    assert delta("apply", tiny_llama, packed, tmp_path / "out") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    whole = AutoModelForCausalLM.from_pretrained(tuned)
    assert model.dtype == torch.bfloat16
    for name, weight in whole.named_parameters():
        assert torch.equal(model.get_parameter(name), weight.bfloat16())


def test_a_bare_file_carries_tensors_alone(tiny_llama: Path, tuned: Path, tmp_path: Path):
    packed, single = tmp_path / "delta.safetensors", tiny_llama / "model.safetensors"
    assert delta("pack", tuned, single, packed) == 0
    assert Delta(packed).manifest.files is None
    assert delta("apply", tuned, packed, tmp_path / "out") == 0
    assert (tmp_path / "out" / "config.json").read_bytes() == (tuned / "config.json").read_bytes()


def test_another_tokenizer_is_refused(tiny_llama: Path, tuned: Path, tmp_path: Path, capsys):
    packed, other = tmp_path / "delta.safetensors", tmp_path / "other"
    assert delta("pack", tiny_llama, tuned, packed) == 0
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(other)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (other / name).write_bytes((tiny_llama / name).read_bytes())
    (other / "tokenizer_config.json").write_text("{}")
    assert delta("apply", other, packed, tmp_path / "out") == 2
    assert "BASE lacks tokenizer_config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_errors_name_the_argument(tiny_llama: Path, tuned: Path, tmp_path: Path, capsys):
    packed = tmp_path / "delta.safetensors"
    assert delta("pack", tiny_llama, tuned, packed) == 0
    data = packed.read_bytes()
    for arguments, message in (
        (("pack", "no/such/base", tuned, tmp_path / "d"), "BASE no/such/base: "),
        (("pack", tiny_llama, tmp_path, tmp_path / "d"), f"TUNED {tmp_path}: "),
        (("pack", tiny_llama, tuned, packed), f"OUT {packed} is there already"),
        (("pack", tiny_llama, tuned, tmp_path, "--overwrite"), f"OUT {tmp_path} is a folder"),
        (("apply", tuned, packed, tmp_path / "out"), "BASE is not the checkpoint"),
        (("apply", tiny_llama, packed, packed, tmp_path / "out"), "does not start from what"),
        (("apply", tiny_llama, packed, tuned), f"OUT {tuned} is there already"),
        (("inspect", tiny_llama / "model.safetensors"), "is not a delta"),
        (("inspect", tmp_path / "nothing"), "No such file"),
    ):
        capsys.readouterr()
        assert delta(*arguments) == 2, arguments
        assert message in (error := capsys.readouterr().err), error
        assert "Traceback" not in error
    assert packed.read_bytes() == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["delta.safetensors", "tuned"]
