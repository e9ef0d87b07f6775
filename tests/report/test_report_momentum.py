"""Two arms that differ in nothing but an argument of the optimizer are told apart."""

import json

import torch

from rlsgd.optimizers.arguments import read_back
from rlsgd.study.arms import Arm, Study
from rlsgd.study.expansion import expand_runs
from rlsgd.study.processes import Outcome
from rlsgd.study.report import markdown_report
from rlsgd.study.results import run_record, study_record
from tests.report.report_data import COMMAND, fit_config, write_run


def test_arms_that_differ_in_momentum_alone(tmp_path, make_report, parsed):
    """By what the runs read back, in report.md and on the page."""
    base = tmp_path / "base.yaml"
    base.write_text("trainer: {max_epochs: 2}")
    arms = [
        Arm(name=name, optimizer="torch.optim.SGD", learning_rate=0.01, optimizer_args=arguments)
        for name, arguments in {"a": {}, "b": {"momentum": 0.9}}.items()
    ]
    folder = tmp_path / "study"
    settings = {"config": str(base), "out": str(folder), "learning_rates_chosen_by": "a coin"}
    study = Study(name="two", seeds=[0], arms=arms, **settings)
    records = []
    for run in expand_runs(study):
        write_run(run.folder, fit_config(run.seed))
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.01, **run.arm.optimizer_args)
        ran = json.dumps({"optimizers": read_back(optimizer)})
        (run.folder / "provenance.json").write_text(ran)
        done = Outcome(status="finished", exit_status=0, seconds=1.0, fingerprint="f")
        records.append(run_record(study, run, done))
    results = study_record(study, COMMAND, records)
    (folder / "results.json").write_text(json.dumps(results))

    written = markdown_report(results, [])
    page = [[cell for cell in row if cell] for row in parsed(make_report(folder)).rows]
    text = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in written.splitlines()
        if line.startswith("|")
    ]
    for rows in (text, page):
        labels = {
            row[0]: cell for row in rows for cell in row if cell.startswith("torch.optim.SGD,")
        }
        assert labels == {"b": "torch.optim.SGD, momentum 0.9"}
        ran = {row[0]: row[2] for row in rows if row[1:2] == ["torch.optim.SGD"] and len(row) == 3}
        assert ran.keys() == {"a", "b"}
        assert "lr 0.01, momentum 0," in ran["a"] and "lr 0.01, momentum 0.9," in ran["b"]
