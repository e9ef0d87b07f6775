"""Recipes: found by name, listed in a line, and the same settings when copied elsewhere."""

import sys
from pathlib import Path

import pytest

from rlsgd.cli.main import main
from rlsgd.cli.recipes import copy_recipe, describe, is_study
from rlsgd.core.composition import composed, composed_bytes
from rlsgd.core.recipes import find_config, recipes
from rlsgd.study.arms import load_study

CONFIGS = Path("configs").resolve()


def test_every_config_of_the_repository_is_a_recipe_and_has_its_line(capsys):
    found = recipes()
    assert set(found.values()) == set(CONFIGS.rglob("*.yaml")) and len(found) > 70
    assert main(["recipes"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line]
    assert {name for name, _ in lines} == set(found)
    assert all(text.strip() for _, text in lines)


def test_the_line_is_the_first_sentence_of_the_comment_without_commands(tmp_path):
    assert describe(CONFIGS / "trainer/checkpoint.yaml") == (
        "Overlay: save after every iteration, and keep the newest two"
    )
    assert describe(CONFIGS / "dr_grpo_embedded.yaml").startswith("Dr. GRPO with SGD, on")
    assert describe(CONFIGS / "studies/quickstart.yaml") == "Do I need Adam here?"


def test_a_file_comes_before_a_recipe_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = CONFIGS / "studies/quickstart.yaml"
    assert find_config("studies/quickstart", "CONFIG") == recipe
    assert find_config("quickstart", "CONFIG") == recipe
    Path("quickstart").mkdir()
    assert find_config("quickstart", "CONFIG") == recipe
    Path("quickstart").rmdir()
    Path("quickstart").write_text("name: mine")
    assert find_config("quickstart", "CONFIG") == Path("quickstart")
    with pytest.raises(ValueError, match=r"more than one: a/last, b/c/last$"):
        monkeypatch.setattr(
            "rlsgd.core.recipes.recipes", lambda: {"b/c/last": recipe, "a/last": recipe}
        )
        find_config("last", "CONFIG")


def test_a_config_of_ones_own_includes_recipes_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.yaml"
    own.write_text("include: [rloo_embedded, trainer/cpu]\ntrainer: {max_epochs: 3}\n")
    settings = composed(own)
    assert settings["model"] == composed(CONFIGS / "rloo_embedded.yaml")["model"]
    assert settings["trainer"]["max_epochs"] == 3 and settings["trainer"]["devices"] == 1
    assert (CONFIGS / "grpo_embedded.yaml").read_bytes() in composed_bytes(own)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_copy_elsewhere_is_the_same_settings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copied, recipe = copy_recipe(name, "mine.yaml"), recipes()[name]
    assert copied == Path("mine.yaml")
    if is_study(recipe):
        assert load_study(copied) == load_study(recipe)
    elif name != "paper/published":  # tables of numbers
        assert composed(copied) == composed(recipe)
    comments = [line for line in copied.read_text().splitlines() if line.startswith("#")]
    assert not any("configs/" in line for line in comments)


def test_what_a_recipe_needs_and_is_not_installed_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("rlsgd.preparation.smollm2.find_spec", lambda name: None)
    assert main(["data", "prepare", "smollm2"]) == 2
    assert "pip install 'rlsgd[gguf]'" in capsys.readouterr().err
