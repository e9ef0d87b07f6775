"""README fits a screen and links its pages; every page of the site is found from its home."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCS = Path("docs")
README = Path("README.md").read_text()
WRITTEN = [Path("README.md"), *sorted(DOCS.glob("*.md"))]


def links(page: Path) -> set[Path]:
    """Pages of the docs that a page links."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+\.md)", page.read_text())
    return {(page.parent / target).resolve() for target in targets}


def in_navigation(entry: Any) -> set[Path]:
    if isinstance(entry, str):
        return {(DOCS / entry).resolve()}
    entries = entry.values() if isinstance(entry, dict) else entry
    return set().union(*map(in_navigation, entries))


def navigation() -> set[Path]:
    """mkdocs.yml has no tag that YAML itself does not know."""
    return in_navigation(yaml.safe_load(Path("mkdocs.yml").read_text())["nav"])


def test_every_page_is_in_the_navigation_and_two_clicks_from_home():
    pages = {page.resolve() for page in DOCS.rglob("*.md")}
    assert navigation() == pages
    home = DOCS / "index.md"
    guides = {page.resolve() for page in DOCS.glob("*.md")} - {home.resolve()}
    once = links(home)
    twice = once | {linked for page in once for linked in links(page)}
    # the reference is reached through the navigation, which every page shows
    assert guides <= once and {page for page in pages if page.name == "report.md"} <= twice


def test_the_home_shows_figure_install_line_and_command():
    home = (DOCS / "index.md").read_text()
    shown = ("plots/accuracy.png", "pip install", "rlsgd study quickstart", "| you want | page |")
    places = [home.index(part) for part in shown]
    assert places == sorted(places)


def test_readme_is_short_and_shows_figure_sentence_and_command_first():
    assert len(README.split()) <= 900
    head = README[: README.index("## ")]
    shown = ("plots/accuracy.png", "95.5 ± 0.5 %", "make quickstart")
    places = [head.index(part) for part in shown]
    assert places == sorted(places)
    guides = {page.resolve() for page in DOCS.glob("*.md")} - {(DOCS / "index.md").resolve()}
    assert guides <= links(Path("README.md"))


def test_the_numbers_in_readme_are_those_of_the_report():
    report = (DOCS / "quickstart/report.md").read_text()
    numbers = (("sgd", "94.7 ± 2.0", "76"), ("adamw", "95.5 ± 0.5", "25"))
    for optimizer, accuracy, unchanged in numbers:
        rows = [line for line in report.splitlines() if line.startswith(f"| {optimizer} ")]
        text = "\n".join(rows)
        assert accuracy in text and accuracy in README, optimizer
        shares = re.findall(r"(\d+\.\d+) ± \d+\.\d+", text)
        assert unchanged in {f"{float(share):.0f}" for share in shares}, optimizer
        assert f"{unchanged} %" in README


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.slow
def test_code_in_readme_and_docs_passes_pyright_as_the_repository_does(tmp_path):
    """In one run of pyright, with the settings of pyproject.toml."""
    blocks = [(page, block) for page in WRITTEN for block in code_blocks(page)]
    assert {page.name for page, _ in blocks} >= {"README.md", "tutorial.md", "metrics.md"}
    for number, (page, block) in enumerate(blocks):
        (tmp_path / f"{page.stem.lower().replace('-', '_')}_{number}.py").write_text(block)
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["pyright"]
    mode = {
        key: value
        for key, value in settings.items()
        if key.startswith("report") or key in ("typeCheckingMode", "pythonVersion")
    }
    mode |= {"include": ["*.py"], "extraPaths": [str(Path.cwd())]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(mode))
    pyright = Path(sys.executable).parent / "pyright"
    command = [pyright, "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
