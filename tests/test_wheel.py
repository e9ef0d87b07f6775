"""What a person gets by pip: the wheel alone, tried from an empty folder."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "rlsgd", "configs")
SMALL = """\
trainer: {max_epochs: 1, check_val_every_n_epoch: 1}
data: {init_args: {prompts_per_epoch: 4, val_problems: 16, val_batch_size: 16}}
"""


@pytest.fixture(scope="module")
def rlsgd(tmp_path_factory) -> Path:
    """The command in an environment that has the wheel, and of this one the other packages.

    A .pth file adds this environment's folders of packages; .pth files in those are not read, so
    that an editable install of the repository is not found.
    """
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # a copy, as building writes beside the sources
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / "source" / name, symlinks=True, ignore=ignored)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(source, folder / "source" / name)
    built = ["build", "--no-isolation", "--outdir", str(folder), str(folder / "source")]
    run([sys.executable, "-m", *built], ROOT)
    [wheel] = folder.glob("rlsgd-*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], folder)
    [packages] = (folder / "env/lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    python = folder / "env/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    run([*pip, "--no-index", "--quiet", str(wheel)], folder)
    return folder / "env/bin/rlsgd"


def run(command: list[str], folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_repository_is_not_what_is_tried(rlsgd, tmp_path):
    show = "import rlsgd, rlsgd.core.recipes as r; print(rlsgd.__file__); print(r.FOLDER)"
    places = run([str(rlsgd.with_name("python")), "-c", show], tmp_path).split()
    assert all(Path(place).is_relative_to(rlsgd.parents[1]) for place in places)


def test_every_config_is_in_the_wheel_and_listed(rlsgd, tmp_path):
    names = {line.split()[0] for line in run([str(rlsgd), "recipes"], tmp_path).split("\n") if line}
    configs = ROOT / "configs"
    assert names == {str(p.relative_to(configs))[: -len(".yaml")] for p in configs.rglob("*.yaml")}


def test_a_shipped_recipe_is_copied_edited_and_trained(rlsgd, tmp_path):
    run([str(rlsgd), "recipes", "copy", "rloo_embedded"], tmp_path)
    copied = tmp_path / "rloo_embedded.yaml"
    text = copied.read_text()
    assert "lr: 0.003" in text and "include: grpo_embedded\n" in text
    copied.write_text(text.replace("lr: 0.003", "lr: 0.5") + SMALL)
    flags = ["--trainer.default_root_dir", "run"]
    said = run([str(rlsgd), "fit", "--config", "rloo_embedded.yaml", *flags], tmp_path)
    assert "run folder: run; base accuracy" in said and "unchanged weights: " in said
    [optimizer] = json.loads((tmp_path / "run/provenance.json").read_text())["optimizers"]
    assert optimizer["arguments"][0]["lr"] == 0.5
    with (tmp_path / "run/metrics.csv").open() as file:
        steps = {row["step"] for row in csv.DictReader(file)}
    assert "0" in steps, "the base is validated first"


def test_the_quickstart_runs_by_its_name(rlsgd, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    flags = ["--seeds", "1", "--overlay", "small.yaml"]
    said = run([str(rlsgd), "study", "quickstart", *flags], tmp_path)
    assert "report: runs/quickstart/report.md" in said
    results = json.loads((tmp_path / "runs/quickstart/results.json").read_text())
    ended = {(run["name"], run["status"]) for run in results["arms"]}
    assert ended == {("adamw", "finished"), ("sgd", "finished")}
