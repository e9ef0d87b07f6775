import pytest

from rlsgd.study.arms import load_study

SGD = {"name": "sgd", "optimizer": "torch.optim.SGD", "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [0]}, "'sedes' is not accepted"),
        ({"arms": [SGD | {"optimiser": "x"}]}, "'optimiser' is not accepted"),
        ({"arms": []}, "arms is empty"),
        ({"arms": None}, "required: arms"),
        ({"arms": [SGD, SGD]}, "arms.name 'sgd' appears more than once"),
        (
            {"arms": [SGD | {"learning_rate": [0.1]}, SGD | {"name": "sgd-lr0.1"}]},
            "arms.name 'sgd-lr0.1' appears more than once",
        ),
        ({"arms": [SGD | {"name": "../sgd"}]}, "arms.name '../sgd' cannot name a folder"),
        ({"arms": [SGD | {"name": "plots"}]}, "arms.name 'plots' cannot name a folder"),
        ({"arms": [SGD | {"precision": "fp8"}]}, "(?s)precision.*fp8"),
        ({"arms": [SGD | {"learning_rate": "fast"}]}, "(?s)learning_rate.*fast"),
        ({"arms": [SGD | {"learning_rate": []}]}, "arms.learning_rate of 'sgd'"),
        ({"arms": [SGD | {"learning_rate": [0.1, 0.0]}]}, "arms.learning_rate of 'sgd'"),
        ({"arms": [SGD | {"optimizer_args": {"lr": 1}}]}, "arms.optimizer_args of 'sgd' holds lr"),
        ({"learning_rates_chosen_by": None}, "learning_rates_chosen_by is missing"),
        ({"config": "absent.yaml"}, "config 'absent.yaml' does not exist"),
        ({"arms": [SGD | {"config": "absent.yaml"}]}, "config 'absent.yaml' does not exist"),
        ({"arms": [SGD | {"after": "sgd"}]}, "arms.after of 'sgd' is 'sgd', which is no arm above"),
        (
            {"arms": [SGD | {"learning_rate": [0.1]}, SGD | {"name": "b", "after": "sgd"}]},
            "named with its rate, as in `sgd-lr0.1`",
        ),
        ({"score": "luck"}, "(?s)score.*luck"),
        ({"seeds": []}, "seeds must be different"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"jobs": 0}, "jobs must be at least 1"),
    ],
)
def test_a_wrong_study_is_refused_by_the_name_of_its_key(write_study, changes, message):
    with pytest.raises(ValueError, match=message):
        load_study(write_study(**changes))


def test_a_wrong_study_ends_the_command_with_status_2_and_starts_nothing(
    write_study, run_study, trace, tmp_path, capsys
):
    assert run_study(write_study(arms=[])) == 2
    assert "arms is empty" in capsys.readouterr().err
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


def test_a_list_of_rates_becomes_one_arm_for_each(write_study):
    sweep = SGD | {"learning_rate": [1e-5, 0.1], "precision": "bf16"}
    study = load_study(write_study(arms=[sweep, SGD | {"name": "fixed"}]))
    assert [(a.name, a.learning_rate, a.precision) for a in study.expanded_arms()] == [
        ("sgd-lr1e-05", 1e-5, "bf16"),
        ("sgd-lr0.1", 0.1, "bf16"),
        ("fixed", 0.1, "fp32"),
    ]


def test_a_rate_without_a_decimal_point_is_a_number(write_study, tmp_path):
    path = write_study()
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 1e-5"))
    assert [a.learning_rate for a in load_study(path).arms] == [1e-5, 1e-5]


def test_the_command_line_replaces_what_the_file_says(write_study, tmp_path):
    study = load_study(write_study(), seeds=[7], out="elsewhere", jobs=None)
    assert (study.seeds, str(study.folder), study.jobs) == ([7], "elsewhere", 1)
    assert study.config == str(tmp_path / "base.yaml")
    assert str(load_study(write_study(out=None)).folder) == "runs/toy"
