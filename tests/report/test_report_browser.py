"""The page in a real browser, Chromium, as wide as a phone and as a desktop window."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.report_data import completion, edit_results, fit_config, write_run, write_study

HERE = Path(__file__).parent
WIDTHS = [390, 1280]
HOSTILE = [
    "<script>window.ran = 'script'</script>",
    "<img src=x onerror=\"window.ran = 'onerror'\">",
    "</pre></div><svg onload=\"window.ran = 'svg'\">",
    "long" * 100,  # no place to break it
]


def opened(page: Path, folder: Path) -> dict[int, dict]:
    """What `inspect_page.js` finds at each width; screenshots go to the folder."""
    script = HERE / "inspect_page.js"
    command = [sys.executable, HERE / "browser.py", page, script, folder, *map(str, WIDTHS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(WIDTHS, json.loads(done.stdout), strict=True))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose names, prompts and completions are as long and as hostile as they may be."""
    from rlsgd.cli.main import main

    folder = tmp_path_factory.mktemp("browser")
    study = write_study(folder / "study", question=HOSTILE[1])
    answers = [completion(text, prompt=HOSTILE[0], answer=HOSTILE[3]) for text in HOSTILE]
    for arm in ("adamw", "sgd"):
        write_run(study / arm / "seed-0", fit_config(0), completions=answers)
    long = "an-optimizer-with-a-long-name-and-no-end-in-sight"

    def rename(results):
        for run in results["arms"]:
            run["optimizer"] = f"some.package.of.{long}.{long}"
        results["study"]["command"] = f"rlsgd study configs/{long}{long}.yaml"

    edit_results(study, rename)
    assert main(["report", str(study), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def found(report: Path) -> dict[int, dict]:
    return opened(report / "report.html", report)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_reaches_beyond_the_window(found, width):
    page = found[width]
    assert page["width"] == width and page["scrollWidth"] == width
    assert page["outside"] == []
    assert min(page["fontSizes"]) >= 12


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_are_loaded_and_legible(found, width):
    images = found[width]["images"]
    assert len(images) == 5
    for image in images:
        assert image["complete"] and image["naturalWidth"] == 960 and image["alt"]
        # lettering of 10 points on 4.8 inches: at least 9 CSS pixels high
        assert 10 / 72 * image["width"] / 4.8 >= 9 and image["width"] < width


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_are_there(found, width):
    tables = {section["title"]: section["rows"] for section in found[width]["tables"]}
    assert [row[0] for row in tables["Outcome"]] == ["adamw", "sgd"]
    assert tables["Outcome"][1][1] == "25.0 → 63.0 ± 27.3"
    assert tables["Paired tests between arms"] == [
        ["sgd minus adamw", "+3.0 ± 2.5", "0.035", "+50.00 ± 0.00", "< 0.001", "3"]
    ]
    for title in ("What training changed", "Memory", "Update sparsity by layer", "Runs"):
        assert tables[title]
    # adamw's seeds have 0.5, 0.25 and 0.25: a third of the way from white to (8, 48, 107)
    assert found[width]["heatmap"][0] == ["33.3", "rgb(173, 186, 206)"]


@pytest.mark.parametrize("width", WIDTHS)
def test_what_a_model_wrote_is_shown_and_does_not_run(found, width):
    page = found[width]
    assert page["ran"] is None and page["scripts"] == 0
    assert page["completions"] == HOSTILE * 2
    assert page["prompts"] == [HOSTILE[0], HOSTILE[3]]
    assert page["resources"] == []


def test_the_browser_would_run_it(tmp_path):
    """The page's silence means something: unescaped and without the policy, the script runs."""
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><section><h2>x</h2></section>{HOSTILE[0]}")
    assert opened(page, tmp_path)[390]["ran"] == "script"


def test_the_window_is_painted(report, found):
    from PIL import Image

    for width in WIDTHS:
        with Image.open(report / f"{width}.png") as picture:
            assert picture.width == width and len(set(picture.convert("L").tobytes())) > 50


def test_the_committed_example_fits_both_widths(tmp_path):
    example = Path("docs/examples/momentum_report/report.html")
    assert example.stat().st_size < 1_500_000
    for width, page in opened(example, tmp_path).items():
        assert page["scrollWidth"] == width and page["outside"] == []
        assert len(page["images"]) == 6
        assert all(image["complete"] and image["naturalWidth"] for image in page["images"])
        assert page["scripts"] == 0 and page["resources"] == []
