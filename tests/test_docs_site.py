"""`make docs`: the site is built without a warning and holds what it promises."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("algorithms", "optimizers", "data", "rewards", "callbacks")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does, in a copy; --strict fails on broken links and references."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy("mkdocs.yml", folder)
    shutil.copytree("docs", folder / "docs")
    (folder / "rlsgd").symlink_to(Path("rlsgd").resolve())
    build = [Path(sys.executable).parent / "zensical", "build", "--strict", "--clean"]
    assert f"{' '.join(map(str, build[1:]))}\n" in Path("Makefile").read_text()
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_is_in_the_reference(site, package):
    tree = ast.parse(Path("rlsgd", package, "__init__.py").read_text())
    (exported,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    page = (site / "reference" / package / "index.html").read_text()
    anchors = set(re.findall(r'id="([\w.]+)"', page))
    assert {f"rlsgd.{package}.{name}" for name in exported} <= anchors


def test_docstrings_become_text_and_tables(site):
    page = (site / "reference/algorithms/index.html").read_text()
    grpo = page.partition('id="rlsgd.algorithms.GRPO"')[2]
    assert "the ratio is clipped below at 1 - clip_low." in grpo
    functions = (site / "reference/functional/index.html").read_text()
    assert 'id="rlsgd.functional.advantages.group_relative"' in functions


def test_the_report_is_part_of_the_site(site):
    example = Path("docs/examples/momentum_report/report.html")
    assert (site / "examples/momentum_report/report.html").read_bytes() == example.read_bytes()
    assert (
        'href="../examples/momentum_report/report.html"'
        in (site / "tutorial/index.html").read_text()
    )


def test_no_page_asks_another_host_for_anything(site):
    loaded = (
        r'<(?:script|img|iframe)[^>]*src="(https?:)?//|<link[^>]*stylesheet[^>]*href="https?://'
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    assert [page for page in pages if re.search(loaded, page.read_text(errors="replace"))] == []
