"""Every class here can be configured from the command line and from YAML."""

import pytest
from jsonargparse import ArgumentParser

from rlsgd.data import PromptDataModule, SolutionDataModule
from rlsgd.rewards import ExactAnswer, Format, ReasoningGymScore, WeightedSum


@pytest.fixture
def parse():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PromptDataModule, "data")

    def build(*flags):
        return parser.instantiate_classes(parser.parse_args(list(flags))).data

    return build


def test_task_and_reward_from_flags(parse):
    data = parse(
        "--data=PromptDataModule",
        "--data.task=ReasoningGym",
        "--data.task.name=chain_sum",
        '--data.task.config={"max_terms": 2}',
        "--data.task.extract=answer_tag",
        "--data.tokenizer=embedded",
        "--data.reward=Format",
        "--data.reward.pattern=[0-9]+",
    )
    assert data.task.config == {"max_terms": 2}
    assert data.task.default_reward().extract == "answer_tag"
    assert isinstance(data.reward, Format)
    assert isinstance(data.task.default_reward(), ReasoningGymScore)


def test_solutions_and_weighted_sum_from_a_config(parse, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    (tmp_path / "data.yaml").write_text(
        f"""
class_path: SolutionDataModule
init_args:
  tokenizer: embedded
  batches_per_epoch: 3
  batch_size: 5
  seed: 4
  task:
    class_path: DatasetTask
    init_args: {{path: {tmp_path}/rows.jsonl}}
  reward:
    class_path: rlsgd.rewards.WeightedSum
    init_args:
      weights: [1.0, 0.5]
      rewards:
      - class_path: rlsgd.rewards.ExactAnswer
        init_args: {{extract: last_number}}
      - class_path: rlsgd.rewards.Format
        init_args: {{pattern: "a+"}}
"""
    )
    data = parse(f"--data={tmp_path}/data.yaml")
    assert isinstance(data, SolutionDataModule)
    assert (data.prompts_per_epoch, data.seed) == (15, 4)
    assert isinstance(data.reward, WeightedSum)
    assert isinstance(data.reward.rewards[0], ExactAnswer)
    assert data.reward.weights == [1.0, 0.5]
    assert data.reward.full_marks == 1.5
