"""Every preset of the papers' experiments runs, and every table's study is about these presets."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from rlsgd.cli.training import TrainingCLI
from rlsgd.core.composition import composed
from rlsgd.preparation.sources import SUITES
from rlsgd.preparation.text import make_tokenizer
from rlsgd.study.arms import load_study
from rlsgd.study.evaluations import evaluation_runs
from rlsgd.study.expansion import expand_runs
from rlsgd.study.published import load_published, published_tables
from tests.helpers.small_data import prepare_small_data
from tests.helpers.small_text import prepare_small_text
from tests.helpers.tiny_models import LLAMA

PRESETS = sorted(Path("configs/paper").glob("*_*.yaml"))
BASES = sorted(Path("configs/paper/bases").glob("*.yaml"))
TABLES = sorted(Path("configs/paper/tables").glob("*.yaml"))
VLLM = Path("configs/paper/vllm.yaml")
PUBLISHED = Path("configs/paper/published.yaml")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PROMPT_SIZES = {"prompts_per_epoch": 2, "group_size": 2, "val_problems": 1}
TEXT_SIZES = {
    "path": "shakespeare",
    "sequence_length": 16,
    "batch_size": 2,
    "batches_per_epoch": 4,
    "val_blocks": 4,
    "val_batch_size": 4,
    "val_fraction": 0.2,
}


def save_tiny_chat_model(folder: Path) -> str:
    """A Llama that reads every byte and has a chat template."""
    tokenizer = make_tokenizer(["none"], vocabulary=258)
    tokenizer.chat_template = TEMPLATE
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {**LLAMA, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1}  # vLLM knows no head below 32
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small cache with all that presets name, and the path of a small model."""
    folder = tmp_path_factory.mktemp("paper")
    patch = pytest.MonkeyPatch()
    patch.setenv("RLSGD_CACHE", str(folder / "cache"))
    patch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "datasets"))
    prepare_small_text(folder / "cache")
    prepare_small_data(folder / "copies")
    yield save_tiny_chat_model(folder / "model")
    patch.undo()


def settings(preset: Path) -> dict:
    return composed(preset)


def reduced(preset: Path, model: str) -> list[str]:
    """Flags for model, sizes and lengths; everything else stays as the preset has it."""
    pretraining = settings(preset)["model"]["class_path"] == "NextToken"
    sizes = TEXT_SIZES if pretraining else PROMPT_SIZES
    return [
        *(f"--data.{name}={value}" for name, value in sizes.items()),
        *(["--model.max_completion_tokens=4"] if not pretraining else []),
        f"--model.policy={'small-text-llama' if pretraining else model}",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.max_epochs=2",
        "--trainer.check_val_every_n_epoch=1",
    ]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_a_preset_runs_two_epochs(preset, tiny, tmp_path, monkeypatch):
    flags = [*reduced(preset, tiny), f"--trainer.default_root_dir={tmp_path}"]
    preset = preset.absolute()
    monkeypatch.chdir(tmp_path)
    trainer = TrainingCLI.run(["fit", "--config", str(preset), *flags]).trainer
    assert trainer.current_epoch == 2 and trainer.global_step >= 2
    assert {"val/accuracy", "val/loss"} & set(trainer.callback_metrics)
    assert next(tmp_path.rglob("model.safetensors")).stat().st_size


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_a_preset_says_its_command_and_what_the_paper_gives(preset):
    text = preset.read_text()
    command = text.splitlines()[0]
    assert command.startswith(f"# rlsgd fit --config {preset} --config configs/trainer/")
    assert Path(command.split()[-1]).is_file()
    assert sum(line.startswith("# arXiv:26") for line in text.splitlines()) == 1
    words = " ".join(text.replace("#", " ").split())
    assert "the paper gives" in words or "is left open" in words


@pytest.mark.parametrize("base", BASES, ids=lambda p: p.stem)
def test_a_base_says_what_the_paper_gives_and_what_it_leaves_open(base):
    lines = base.read_text().splitlines()
    for heading in ("# Once before: ", "# The paper gives: ", "# It leaves open, and here is:"):
        assert sum(line.startswith(heading) for line in lines) == 1, heading
    assert any(base.name in preset.read_text() for preset in PRESETS)


# ---- sampling with vLLM


@pytest.mark.parametrize("file", [*PRESETS, *TABLES], ids=lambda p: p.stem)
def test_what_samples_says_how_to_do_it_with_vllm(file):
    """And vLLM is nowhere else, so that no preset needs it unasked."""
    flag = "--overlay" if file in TABLES else "--config"
    second = file.read_text().splitlines()[1]
    said = second == f"# With completions from vLLM: the same and {flag} {VLLM}"
    assert said == (not file.stem.startswith("pretrain"))
    assert "VLLMSampler" not in file.read_text()


@pytest.mark.parametrize("name", ["grpo_math_qwen3_1.7b_sgd", "ppo_math_qwen3_1.7b_adamw"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "sleep: vLLM does not sleep on a CPU"),
        (["--model.sampler.sleep=false"], "--model.sampler VLLMSampler needs vLLM: pip install"),
        (
            ["--model.sampler.max_model_len=64"],
            "max_model_len 64: a prompt of .* and --model.max_completion_tokens 4 are",
        ),
    ],
    ids=["as it is", "without vLLM", "too long"],
)
def test_a_preset_with_the_overlay_samples_with_vllm_or_not_at_all(
    name, more, message, tiny, tmp_path, monkeypatch
):
    preset = Path(f"configs/paper/{name}.yaml")
    configs = ["--config", str(preset.absolute()), "--config", str(VLLM.absolute())]
    flags = [*reduced(preset, tiny), f"--trainer.default_root_dir={tmp_path}", *more]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)  # also where it is installed
    with pytest.raises(ValueError, match=message):
        TrainingCLI.run(["fit", *configs, *flags])


@pytest.mark.vllm
def test_a_preset_with_the_overlay_trains(tiny, tmp_path, monkeypatch):
    preset = Path("configs/paper/grpo_math_qwen3_1.7b_sgd.yaml")
    configs = ["--config", str(preset.absolute()), "--config", str(VLLM.absolute())]
    flags = [*reduced(preset, tiny), f"--trainer.default_root_dir={tmp_path}"]
    flags += ["--model.sampler.sleep=false", "--model.sampler.max_model_len=2048"]
    flags += ["--model.sampler.engine_args.enforce_eager=true"]
    monkeypatch.chdir(tmp_path)
    trainer = TrainingCLI.run(["fit", *configs, *flags]).trainer
    assert trainer.current_epoch == 2
    assert trainer.callback_metrics["sampler/weight_version"] >= 1


@pytest.mark.parametrize("table", [t for t in TABLES if t.stem != "pretraining"])
def test_every_run_of_a_table_takes_the_overlay(table):
    study = load_study(table, overlays=[str(VLLM)])
    sampler = settings(VLLM)["model"]["init_args"]["sampler"]
    for run in expand_runs(study):
        base = settings(run.config)
        for each in (run, *evaluation_runs(study, run)):
            assert each.overlay["model"]["init_args"]["sampler"] == sampler
            own = {**base["model"]["init_args"], **each.overlay["model"]["init_args"]}
            data = {
                **base["data"]["init_args"],
                **each.overlay.get("data", {}).get("init_args", {}),
            }
            longest = data["max_prompt_tokens"] + own["max_completion_tokens"]
            assert longest <= sampler["init_args"]["max_model_len"]


# ---- comparisons


def family(preset: Path) -> str:
    """Task and model; what comes after in the name is the optimizer."""
    return next(preset.stem.removesuffix(f"_{o}") for o in OPTIMIZERS if preset.stem.endswith(o))


OPTIMIZERS = ("sgd_momentum", "sgd_ll", "adamw", "sgd", "rmsprop")
FAMILIES = {name: [p for p in PRESETS if family(p) == name] for name in map(family, PRESETS)}


@pytest.mark.parametrize("name", FAMILIES)
def test_presets_of_one_comparison_differ_in_the_optimizer_alone(name):
    def rest(preset):
        found = settings(preset)
        own = found["model"]["init_args"]
        optimizers = [own.pop(key) for key in ("optimizer", "value_optimizer") if key in own]
        return found, [one["class_path"] for one in optimizers]

    compared = [rest(preset) for preset in FAMILIES[name]]
    assert len(compared) == {"grpo_math": 4}.get("_".join(name.split("_")[:2]), 2)
    assert all(found == compared[0][0] for found, _ in compared)
    for _, classes in compared:
        assert len(set(classes)) == 1, "policy and critic have the same optimizer"


def test_every_arm_of_every_table_has_its_preset():
    expected = {f"grpo_math_{m}": 4 for m in ("qwen3_1.7b", "qwen3_8b", "llama3.1_8b")}
    expected |= {"grpo_code_qwen3_1.7b": 2, "grpo_rlve_qwen3_1.7b": 2}
    expected |= {"ppo_math_qwen3_1.7b": 2, "ppo_math_qwen3_8b": 2}
    expected |= {f"pretrain_{size}": 2 for size in ("130m", "350m", "1b")}
    assert {name: len(presets) for name, presets in FAMILIES.items()} == expected


# ---- tables


@pytest.mark.parametrize("table", TABLES, ids=lambda p: p.stem)
def test_the_arms_of_a_table_are_its_presets(table):
    assert table.read_text().startswith(f"# rlsgd study {table} ")
    study = load_study(table)
    runs = expand_runs(study)
    assert len(runs) == sum(len(arm.rates) for arm in study.arms)
    for arm in study.arms:
        config = settings(Path(arm.config or study.config))
        optimizer = config["model"]["init_args"]["optimizer"]
        assert arm.optimizer == optimizer["class_path"]
        own = dict(optimizer["init_args"])
        assert own.pop("lr") in arm.rates and own == arm.optimizer_args
        assert arm.precision == "master" and config["trainer"]["precision"] == "bf16-mixed"


def test_every_preset_is_in_a_table():
    used = {Path(arm.config) for table in TABLES for arm in load_study(table).arms if arm.config}
    used |= {Path(load_study(table).config) for table in TABLES}
    assert used == {preset.resolve() for preset in PRESETS}


@pytest.mark.parametrize("table", TABLES, ids=lambda p: p.stem)
def test_published_numbers_stand_for_what_the_study_measures(table):
    study = load_study(table)
    tables = published_tables(study)
    assert [one.source.startswith("arXiv:2602.07729v1, ta") for one in tables][:1] in ([], [True])
    benchmarks = {name for suite in SUITES.values() for name in suite}
    for one in tables:
        for column in one.columns:
            place, _, metric = column.metric.partition("/")
            known = benchmarks | {"update", "value_update", "mean"}
            assert place in known and metric in {*METRICS, ""}, column
    if tables and table.stem != "table5":
        assert {row.arm for row in tables[0].rows} == {arm.name for arm in study.arms}


METRICS = {"accuracy", "pass@1", "pass@10", "bf16_difference_isclose_1e-5", "unchanged_bf16"}
METRICS.add("effective_rank_percent")


def test_printed_means_are_those_of_their_rows():
    """Guards against misread numbers: a mean is right to the 0.1 that rounding leaves."""
    wrong = set()
    for name, table in load_published(PUBLISHED).items():
        for row in table.rows:
            if table.columns[-1].metric == "mean":
                *values, mean = [value for value in row.values if value is not None]
                if abs(sum(values) / len(values) - mean) > 0.11:
                    wrong.add((name, row.arm, row.evaluation))
    assert wrong == {("table6", "qwen3-1.7b-rlve-adamw", "8k")}  # so printed


@pytest.mark.parametrize("table", [t for t in TABLES if t.stem in ("table3", "table6")])
def test_an_evaluation_reports_each_benchmark(table, tiny, tmp_path, monkeypatch):
    """The overrides of a table's evaluation, as `rlsgd test` gets them."""
    study = load_study(table, out=tmp_path / "out")
    run = expand_runs(study)[0]
    test = evaluation_runs(study, run)[0]
    overlay = {**test.overlay, "trainer": {"logger": test.overlay["trainer"]["logger"]}}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    flags = ["--config", str(test.config), "--config", str(tmp_path / "overlay.yaml")]
    flags += [f"--model.policy={tiny}", "--model.max_completion_tokens=2"]
    flags += ["--data.val_batch_size=16"]
    monkeypatch.chdir(tmp_path)
    TrainingCLI.run(["test", *flags])
    record = json.loads((test.folder / "evaluation.json").read_text())
    suite = SUITES["code-benchmarks" if table.stem == "table3" else "math-benchmarks"]
    wanted = {
        column.metric
        for one in published_tables(study)
        for column in one.columns
        if column.metric.split("/")[0] in suite
    }
    assert wanted and wanted <= record["metrics"].keys()
