"""AdaptiveReasoningGym: which problems it gives, what it learns from, what it refuses."""

from collections import Counter

import pytest
from jsonargparse import ArgumentParser

from rlsgd.core.problems import Problem, Scores
from rlsgd.data import AdaptiveReasoningGym, PromptDataModule
from rlsgd.data.tasks.adaptive import Environment
from rlsgd.rewards import ReasoningGymScore

DIGITS = Environment("chain_sum", {"min_terms": 2, "max_terms": 2})  # 1 + difficulty of them
TERMS = Environment("chain_sum", {"min_digits": 2, "max_digits": 2})  # 2 + difficulty
GROUP = 4


def make_task(**options):
    return AdaptiveReasoningGym({"digits": DIGITS, "terms": TERMS}, **options)


def raised(epochs, **options):
    """A task whose two environments have been solved at every difficulty for some epochs."""
    task = make_task(min_prompts=1, **options)
    for epoch in range(epochs):
        problems = [problem(label, epoch) for label in ("digits", "terms")]
        task.record(problems, [GROUP, GROUP], GROUP, epoch=epoch)
    return task


def problem(label, difficulty):
    return Problem("", "", {"environment": label, "difficulty": difficulty})


def questions(problems):
    return [problem.question for problem in problems]


def places(problems):
    return Counter((p.metadata["environment"], p.metadata["difficulty"]) for p in problems)


def test_problems_are_of_the_window_and_have_the_difficulty_they_name():
    task = raised(5)
    assert (task.difficulties["terms"].low(5), task.difficulties["terms"].high(5)) == (2, 5)
    problems = task.train_problems(seed=0, epoch=5, count=400)
    found = places(problems)
    assert found.keys() == {(label, d) for label in ("digits", "terms") for d in range(2, 6)}
    # --- uniform: 50 of each, with a standard deviation of sqrt(400 * 1/8 * 7/8) = 6.6 ---
    assert all(abs(number - 50) < 4 * 6.6 for number in found.values())
    for one in problems:
        difficulty, entry = one.metadata["difficulty"], one.metadata["entry"]["metadata"]
        is_digits = one.metadata["environment"] == "digits"
        assert entry["num_digits"] == (1 + difficulty if is_digits else 2)
        assert entry["num_terms"] == (2 if is_digits else 2 + difficulty)


def test_problems_are_scored_by_their_data_set():
    reward = raised(2).default_reward()
    assert isinstance(reward, ReasoningGymScore)
    for one in raised(2).train_problems(seed=0, epoch=2, count=10):
        assert reward.score(one.answer, one) == 1.0
        assert reward.score("x", one) == 0.0


def test_training_is_a_function_of_seed_epoch_and_what_was_recorded():
    task = raised(3)
    first = task.train_problems(seed=1, epoch=3, count=30)
    task.train_problems(seed=2, epoch=9, count=5)
    task.validation_problems(8)
    assert task.train_problems(seed=1, epoch=3, count=30) == first
    assert raised(3).train_problems(seed=1, epoch=3, count=30) == first
    assert raised(2).train_problems(seed=1, epoch=3, count=30) != first
    assert questions(task.train_problems(seed=2, epoch=3, count=30)) != questions(first)
    assert questions(task.train_problems(seed=1, epoch=4, count=30)) != questions(first)


def test_what_is_recorded_changes_later_epochs_alone():
    task = raised(3)
    before = [task.train_problems(seed=0, epoch=epoch, count=20) for epoch in range(5)]
    task.record([problem("digits", 3)], [GROUP], GROUP, epoch=3)
    after = [task.train_problems(seed=0, epoch=epoch, count=20) for epoch in range(5)]
    assert after[:4] == before[:4] and after[4] != before[4]


def test_completions_at_the_highest_difficulty_count_and_no_others():
    task = make_task()
    risen = {"initial": 0, "rises": [1, 2], "counts": [0, 0, 0]}
    task.load_state_dict({**task.state_dict(), "digits": risen})
    found = [("digits", 2), ("digits", 1), ("terms", 0), ("digits", 2), ("digits", 0)]
    correct = [4, 1, 2, 3, 4]
    task.record([problem(*place) for place in found], correct, GROUP, epoch=2)
    assert task.difficulties["digits"].counts == [2, 8, 7]
    assert task.difficulties["terms"].counts == [1, 4, 2]
    metrics = task.metrics(2)
    assert metrics["difficulty/digits/high"] == 2 and metrics["difficulty/digits/low"] == 0
    assert metrics["difficulty/digits/accuracy_at_high"] == 7 / 8
    assert metrics["difficulty/terms/high"] == 0
    assert metrics["difficulty/terms/accuracy_at_high"] == 1 / 2


def test_environments_rise_on_their_own():
    task = make_task()
    for epoch in range(3):
        problems = [problem("digits", epoch)] * 8 + [problem("terms", 0)] * 8
        task.record(problems, [4] * 8 + [3] * 8, GROUP, epoch=epoch)
    assert [task.difficulties[label].high(3) for label in ("digits", "terms")] == [3, 0]


def test_validation_keeps_its_difficulties_and_is_never_trained_on():
    # --- two one-digit numbers: at most 200 questions, so that any overlap would show ---
    task, later = raised(0), raised(6)
    for kind in ("validation_problems", "test_problems"):
        problems = getattr(task, kind)(40)
        assert getattr(later, kind)(40) == problems
        assert len(set(questions(problems))) == len(problems)
    assert places(task.validation_problems(40)) == dict.fromkeys(
        [(label, d) for label in ("digits", "terms") for d in range(4)], 5
    )
    validation = set(questions(task.validation_problems(400)))
    test = set(questions(task.test_problems(400)))
    assert validation and test and not validation & test
    for epoch in range(8):
        train = set(questions(later.train_problems(seed=epoch, epoch=epoch, count=200)))
        assert not train & (validation | test)


def test_validation_difficulties_are_those_given():
    task = make_task(validation_difficulties=(9, 2, 2, 10))
    found = places(task.validation_problems(10))
    # --- digits end at difficulty 9, so that five places share ten problems ---
    assert found == {("digits", 2): 2, ("digits", 9): 2, ("terms", 2): 2, ("terms", 9): 2} | {
        ("terms", 10): 2
    }
    assert len(task.validation_problems(3)) == 3 and task.validation_problems(0) == []


def test_equal_environments_have_other_problems():
    task = AdaptiveReasoningGym({"a": DIGITS, "b": DIGITS}, initial_difficulty=8, window=1)
    problems = task.train_problems(seed=0, epoch=0, count=60)
    assert len(set(questions(problems))) == 60 and len(places(problems)) == 2


def test_max_difficulty_bounds_the_rise_and_the_start():
    task = AdaptiveReasoningGym(
        {"digits": Environment("chain_sum", DIGITS.config, max_difficulty=1)},
        initial_difficulty=5,
        min_prompts=1,
    )
    assert task.difficulties["digits"].high(0) == 1
    task.record([problem("digits", 1)], [GROUP], GROUP, epoch=0)
    assert task.difficulties["digits"].high(1) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"environments": {}}, r"--data.task.environments is empty"),
        ({"environments": {"sums": Environment()}}, r"--data.task.environments.sums.name: "),
        ({"initial_difficulty": -1}, r"--data.task.initial_difficulty and .* got -1 and \[0, 1"),
        ({"validation_difficulties": ()}, r"--data.task.initial_difficulty and .* got 0 and \[\]"),
        (
            {"validation_difficulties": (11,)},
            r"environments.digits.max_difficulty: 9 .*begin at 11",
        ),
        ({"held_out_fraction": 0.0}, r"--data.task.held_out_fraction must be between 0 and 1"),
        ({"threshold": 0.0}, r"--data.task.threshold"),
        ({"extract": "tag"}, r"--data.reward.extract"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}" if message.startswith("--") else message):
        AdaptiveReasoningGym(**{"environments": {"digits": DIGITS, "terms": TERMS}, **options})


def test_too_few_questions_name_their_environment():
    message = r"^--data.task.environments.digits.name: chain_sum gave .*\(at difficulty 0\)$"
    with pytest.raises(ValueError, match=message):
        AdaptiveReasoningGym({"digits": DIGITS}, held_out_fraction=0.998)


def test_a_checkpoint_of_other_environments_is_refused():
    message = r"--data.task.environments: .* digits, terms; go on with .* not with digits$"
    with pytest.raises(ValueError, match=message):
        AdaptiveReasoningGym({"digits": DIGITS}).load_state_dict(make_task().state_dict())


def test_the_data_module_counts_full_marks_of_each_prompt(counting, plain_tokenizer):
    class Recording(counting):
        def record(self, problems, correct, group_size, *, epoch):
            self.recorded = questions(problems), correct, group_size, epoch

    data = PromptDataModule(Recording(), plain_tokenizer, prompts_per_epoch=2, group_size=3)
    rewards = [1.5, 1.4, 1.5, 0.0, 1.0, 2.0]
    data.record(data.prompts(4), Scores(rewards, {}, [None] * 6, full_marks=1.5), epoch=4)
    assert data.task.recorded == (["100008", "100009"], [2, 1], 3, 4)


def test_data_modules_of_other_tasks_have_no_state(counting, plain_tokenizer):
    assert PromptDataModule(counting(), plain_tokenizer).state_dict() == {}


def test_environments_from_a_config(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PromptDataModule, "data")
    (tmp_path / "data.yaml").write_text(
        """
class_path: PromptDataModule
init_args:
  tokenizer: embedded
  task:
    class_path: AdaptiveReasoningGym
    init_args:
      environments:
        gcd: {}
        sums: {name: chain_sum, config: {max_terms: 2}, max_difficulty: 3}
      validation_difficulties: [0, 2]
"""
    )
    parsed = parser.parse_args([f"--data={tmp_path}/data.yaml", "--data.task.window=2"])
    task = parser.instantiate_classes(parsed).data.task
    assert {label: d.last for label, d in task.difficulties.items()} == {"gcd": 3, "sums": 3}
    assert task.difficulties["gcd"].rule.window == 2
    assert len(places(task.validation_problems(8))) == 4
