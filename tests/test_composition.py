"""Configs that include others: what is laid over what, and what is refused."""

import pytest
import yaml

from rlsgd.core.composition import composed, composed_arguments, composed_bytes, merged
from rlsgd.core.recipes import recipes


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_mappings_are_laid_over_key_by_key_and_lists_replaced():
    base = {"trainer": {"max_epochs": 3, "callbacks": ["a", "b"]}, "seed_everything": 0}
    over = {"trainer": {"callbacks": ["c"]}, "model": None}
    assert merged(base, over) == {
        "trainer": {"max_epochs": 3, "callbacks": ["c"]},
        "seed_everything": 0,
        "model": None,
    }


def test_arguments_of_another_class_are_not_carried_over():
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-6, "weight_decay": 0.01}}
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    assert merged({"optimizer": adamw}, {"optimizer": sgd}) == {"optimizer": sgd}
    slower = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-7}}
    kept = {"lr": 1e-7, "weight_decay": 0.01}
    assert (
        merged(adamw, slower)["init_args"]
        == merged(adamw, {"init_args": {"lr": 1e-7}})["init_args"]
    )
    assert merged(adamw, slower)["init_args"] == kept


def test_included_files_come_first_in_their_order_and_are_found_beside_the_file(tmp_path):
    write(tmp_path, "deep/a.yaml", "x: 1\ny: 1\nz: 1\n")
    write(tmp_path, "deep/b.yaml", "include: a.yaml\ny: 2\nz: 2\n")
    write(tmp_path, "c.yaml", "z: 3\nw: 3\n")
    top = write(tmp_path, "top.yaml", "include: [deep/b.yaml, c.yaml]\nw: 4\n")
    assert composed(top) == {"x": 1, "y": 2, "z": 3, "w": 4}
    before = composed_bytes(top)
    write(tmp_path, "deep/a.yaml", "x: 5\n")
    assert composed_bytes(top) != before, "a study must see what changed below its config"


@pytest.mark.parametrize(
    "text, message",
    [
        ("include: missing.yaml", r"top.yaml: it includes missing.yaml, which does not exist"),
        ("include: top.yaml", r"top.yaml: it includes itself"),
        ("include: {a: 1}", r"top.yaml: `include` must be a list of files"),
        ("- 1", r"top.yaml: must hold a mapping"),
        ("a: [", r"top.yaml: no valid YAML"),
    ],
)
def test_what_cannot_be_composed_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"^--config .*{message}"):
        composed(write(tmp_path, "top.yaml", text))


def test_the_command_line_sees_whole_files_and_every_other_argument_as_it_was(tmp_path):
    write(tmp_path, "a.yaml", "x: 1\n")
    top = write(tmp_path, "top.yaml", "include: a.yaml\ny: 2\n")
    plain = write(tmp_path, "plain.yaml", "z: 3\n")
    given = ["fit", "--config", str(top), f"--config={top}", "--config", str(plain), "--config={}"]
    with composed_arguments([*given, "--config", "trainer/cpu"]) as arguments:
        assert [arguments[i] for i in (0, 1, 4, 5, 6)] == [given[i] for i in (0, 1, 4, 5, 6)]
        assert arguments[8] == str(recipes()["trainer/cpu"])
        made = [arguments[2], arguments[3].removeprefix("--config=")]
        for name in made:
            assert name.endswith("top.yaml")
            with open(name) as file:
                assert yaml.safe_load(file) == {"x": 1, "y": 2}
