"""The page by value, and as something that is passed on: nothing runs, nothing leaks."""

import base64
import json

import pytest

from rlsgd.report import figures
from rlsgd.report.figures import band
from tests.report.report_data import (
    COMMAND,
    completion,
    edit_results,
    fit_config,
    write_run,
    write_study,
)

HOSTILE = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>\"&{{ 7 * 7 }}"


def row(elements, *start):
    (found,) = [row for row in elements.rows if row[: len(start)] == list(start)]
    return found


def test_the_tables_by_value(tmp_path, make_report, parsed):
    elements = parsed(make_report(write_study(tmp_path / "study")))
    # --- Hand calculation --- 0.50, 0.60, 0.70: mean 60, t(2) * 10 / sqrt(3) = 24.8;
    # 0.52, 0.63, 0.74: mean 63, t(2) * 11 / sqrt(3) = 27.3
    assert row(elements, "adamw", "25.0 → 60.0 ± 24.8")[2:] == [
        "0.300 → 0.400 ± 0.000", "3", "1e-05", "torch.optim.AdamW", "fp32"
    ]  # fmt: skip
    assert row(elements, "sgd", "25.0 → 63.0 ± 27.3")
    assert row(elements, "sgd minus adamw") == [
        "sgd minus adamw", "+3.0 ± 2.5", "0.035", "+50.00 ± 0.00", "< 0.001", "3"
    ]  # fmt: skip
    assert row(elements, "sgd", "75.00 ± 0.00")[-1] == "2 epochs, 2 optimizer steps"
    assert row(elements, "sgd", "0.00 ± 0.00") == ["sgd", "0.00 ± 0.00"]  # 1024 bytes in MiB
    assert row(elements, "sgd", "2", "74.0") == [
        "sgd", "2", "74.0", "finished", "2", "12", "toy"
    ]  # fmt: skip


def test_the_page_says_what_was_run(tmp_path, make_report):
    study = write_study(tmp_path / "study")
    page = (make_report(study) / "report.html").read_text()
    versions = json.loads((study / "results.json").read_text())["study"]["versions"]
    assert set(versions) == {"rlsgd", "torch", "lightning", "transformers", "python"}
    for name, number in versions.items():
        assert f'<th scope="row">{name}</th><td>{number}</td>' in page
    assert f'<pre class="code">{COMMAND}</pre>' in page
    assert "Does it matter?" in page and "chosen by: a coin." in page
    assert "configuration of adamw, seed 0" in page and "configuration of adamw, seed 1" not in page
    assert "class_path: torch.optim.AdamW" in page
    assert "/home/somebody" not in page and "CSVLogger" not in page
    assert f"rlsgd report {study} --out" in page


def test_a_single_run_says_what_it_did_not_record(tmp_path, make_report):
    folder = write_run(tmp_path / "run", fit_config(0))
    page = (make_report(folder) / "report.html").read_text()
    assert "did not record its command" in page and "did not record the versions" in page
    known = {"command": "rlsgd fit --config x.yaml", "versions": {"torch": "2.13.0"}}
    (folder / "provenance.json").write_text(json.dumps(known))
    page = (make_report(folder) / "report.html").read_text()
    assert "did not record" not in page
    assert "rlsgd fit --config x.yaml" in page and "<td>2.13.0</td>" in page


def test_figures_are_in_the_page_and_beside_it(tmp_path, make_report, parsed):
    out = make_report(write_study(tmp_path / "study"))
    images = [attributes for tag, attributes in parsed(out).elements if tag == "img"]
    files = {path.name: path.read_bytes() for path in (out / "plots").iterdir()}
    assert set(files) == {
        f"{name}.png" for name in ("accuracy", "reward", "unchanged_bf16", "tradeoff", "memory")
    }
    inside = [
        base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images
    ]
    assert sorted(inside) == sorted(files.values())
    assert all(data.startswith(b"\x89PNG") for data in inside)
    assert all(image["alt"] for image in images)


def test_the_band_is_the_interval_at_each_epoch():
    # --- Hand calculation --- 1 and 3: mean 2, t(1) * sqrt(2) / sqrt(2) = 12.706
    points = band([{1: 1.0, 2: 5.0}, {1: 3.0, 3: 7.0}])
    assert list(points) == [1]
    assert (points[1].mean, points[1].half_width) == pytest.approx((2, 12.706))
    assert figures.band([{4: 1.0}])[4].half_width is None


def test_everything_foreign_is_text(tmp_path, make_report, parsed):
    study = write_study(tmp_path / "study", question=HOSTILE, learning_rates_chosen_by=HOSTILE)
    hostile = completion(HOSTILE, prompt=HOSTILE, answer=HOSTILE)
    for arm in ("adamw", "sgd"):
        config = fit_config(0) | {HOSTILE: HOSTILE}
        write_run(study / arm / "seed-0", config, completions=[hostile])

    def change(results):
        results["study"] |= {"name": HOSTILE, "command": HOSTILE, "versions": {HOSTILE: HOSTILE}}
        results["arms"][1] |= {"status": "failed", "error": HOSTILE}
        for run in results["arms"]:
            run["optimizer"] = HOSTILE

    edit_results(study, change)
    elements = parsed(make_report(study))
    tags = {tag for tag, _ in elements.elements}
    assert "script" not in tags and not any(tag.startswith("svg") for tag in tags)
    for tag, attributes in elements.elements:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("&lt;script&gt;window.ran = 1&lt;/script&gt;") > 12
    assert "49" not in page.partition("<title>")[2].partition("</title>")[0]  # no template in it


def test_nothing_is_loaded_and_no_script_may_run(tmp_path, make_report, parsed):
    elements = parsed(make_report(write_study(tmp_path / "study"))).elements
    (policy,) = [
        attributes["content"]
        for tag, attributes in elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"link", "iframe", "object", "script"} & {tag for tag, _ in elements}
    assert not any("href" in attributes for _, attributes in elements)


def test_credentials_and_the_environment_stay_out(tmp_path, make_report, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "value-of-the-environment")
    config = fit_config(0)
    config["trainer"]["plugins"] = {"api_key": "key-in-the-config"}
    study = write_study(tmp_path / "study")
    write_run(study / "sgd/seed-0", config)

    def change(results):
        results["study"]["command"] = "rlsgd study x.yaml --token token-in-the-command"
        results["arms"][0] |= {"status": "failed", "error": "password=word-in-the-log"}

    edit_results(study, change)
    page = (make_report(study) / "report.html").read_text()
    for secret in ("value-of-the", "key-in-the-config", "token-in-the-command", "word-in-the-log"):
        assert secret not in page
    assert page.count("[redacted]") == 3


def test_the_same_runs_give_the_same_page(tmp_path, make_report):
    study = write_study(tmp_path / "study")
    first = (make_report(study) / "report.html").read_bytes()
    assert (make_report(study) / "report.html").read_bytes() == first


def test_a_study_without_its_run_folders_still_has_its_tables(tmp_path, make_report, parsed):
    study = write_study(tmp_path / "study")
    moved = tmp_path / "moved"
    moved.mkdir()
    (study / "results.json").rename(moved / "results.json")
    out = make_report(moved)
    assert row(parsed(out), "sgd", "25.0 → 63.0 ± 27.3")
    page = (out / "report.html").read_text()
    assert "Update sparsity by layer" not in page and "Completions at" not in page


def test_a_failed_run_is_shown_and_not_counted(tmp_path, make_report, parsed):
    study = write_study(tmp_path / "study")
    edit_results(study, lambda r: r["arms"][1].update(status="failed", error="no <memory>"))
    out = make_report(study)
    (found,) = [r for r in parsed(out).rows if r[:1] == ["sgd"] and "2 of 3 (1 failed)" in r]
    assert found[1] == "25.0 → 68.5 ± 69.9"  # 63 and 74: 68.5, 12.706 * 11 / 2 = 69.9
    assert "no &lt;memory&gt;" in (out / "report.html").read_text()


def test_a_sweep_has_its_rates_and_a_caveat(tmp_path, make_report, parsed):
    from rlsgd.study.arms import Arm

    arms = [
        Arm(name="adamw", optimizer="torch.optim.AdamW", learning_rate=1e-5),
        Arm(name="sgd", optimizer="torch.optim.SGD", learning_rate=[0.1, 0.2]),
    ]
    study = write_study(tmp_path / "study", arms=arms)
    out = make_report(study)
    elements = parsed(out)
    # both rates have the same numbers: the smaller wins
    assert row(elements, "0.1", "3")[-1] == "best" and row(elements, "0.2", "3")[-1] == ""
    assert row(elements, "sgd-lr0.1 minus adamw")
    page = (out / "report.html").read_text()
    assert "chosen on these same runs" in page
    assert (out / "plots/learning_rates.png").is_file()
