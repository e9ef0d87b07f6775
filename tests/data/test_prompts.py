from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from rlsgd.core.problems import Problem
from rlsgd.data import PromptDataModule
from rlsgd.data.base import batches_of_rank
from rlsgd.rewards import ExactAnswer
from tests.data.broken_reward import Patient, Sulking

BOS = 1


def texts(prompts):
    return [prompt.text for prompt in prompts]


def module(task, tokenizer, **options):
    return PromptDataModule(task, tokenizer, **{"prompts_per_epoch": 4, **options})


def on_rank(data, rank, world_size):
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return data


def test_plain_prompt(counting, plain_tokenizer):
    data = module(counting(), plain_tokenizer, system_prompt="Count.", prompt_suffix=" =")
    prompt = data.prompts(0)[0]
    assert prompt.problem.question == "100000"
    assert prompt.text == "Count.\n\n100000 ="
    assert prompt.token_ids[0] == BOS
    assert data.tokenizer.decode(prompt.token_ids[1:]) == prompt.text


def test_chat_prompt_has_one_bos(counting, chat_tokenizer):
    data = module(counting(), chat_tokenizer, system_prompt="Count.", prompt_suffix="?")
    prompt = data.prompts(0)[0]
    assert prompt.text == "<bos>[system]Count.[user]100000?[assistant]"
    assert prompt.token_ids.count(BOS) == 1
    assert data.tokenizer.decode(prompt.token_ids) == prompt.text
    # --- the trap: this tokenizer adds a BOS to the one that the template wrote ---
    assert data.tokenizer(prompt.text)["input_ids"].count(BOS) == 2


def test_chat_template_can_be_switched_off(counting, chat_tokenizer):
    assert module(counting(), chat_tokenizer, chat_template=False).prompts(0)[0].text == "100000"


def test_chat_template_that_is_not_there_is_an_error(counting, plain_tokenizer):
    with pytest.raises(ValueError, match=r"--data.chat_template is true, but the tokenizer has no"):
        module(counting(), plain_tokenizer, chat_template=True).setup("fit")


def test_messages_keep_their_own_system_prompt(counting, chat_tokenizer, plain_tokenizer):
    chat = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi"}]
    task = counting(metadata={"messages": chat})
    options = {"system_prompt": "Mine.", "prompt_suffix": "!"}
    prompt = module(task, chat_tokenizer, **options).prompts(0)[0]
    assert prompt.text == "<bos>[system]Own.[user]Hi![assistant]"
    assert chat[1]["content"] == "Hi"  # the problem itself is left alone
    user_only = counting(metadata={"messages": chat[1:]})
    prompt = module(user_only, chat_tokenizer, **options).prompts(0)[0]
    assert prompt.text == "<bos>[system]Mine.[user]Hi![assistant]"
    with pytest.raises(ValueError, match=r"--data.chat_template: the questions are chats"):
        module(task, plain_tokenizer).prompts(0)


def test_prompts_are_a_function_of_seed_and_epoch(counting, plain_tokenizer):
    data = module(counting(), plain_tokenizer, seed=2)
    epoch = texts(data.prompts(3))
    assert epoch == ["120012", "120013", "120014", "120015"]
    data.prompts(7)
    assert texts(data.prompts(3)) == epoch
    assert texts(module(counting(), plain_tokenizer, seed=3).prompts(3)) != epoch


def test_ranks_take_contiguous_shares(counting, plain_tokenizer):
    data = module(counting(), plain_tokenizer)
    shares = [texts(data.prompts(1, rank=rank, world_size=2)) for rank in range(2)]
    assert shares == [["100004", "100005"], ["100006", "100007"]]


@pytest.mark.parametrize("stage", ["fit"])
def test_prompts_that_cannot_be_shared_are_an_error(counting, plain_tokenizer, stage):
    message = r"--data.prompts_per_epoch 4 cannot be divided among 3 ranks; .* multiple of 3"
    with pytest.raises(ValueError, match=message):
        module(counting(), plain_tokenizer).prompts(0, rank=0, world_size=3)
    with pytest.raises(ValueError, match=message):
        on_rank(module(counting(), plain_tokenizer), 0, 3).setup(stage)


@pytest.mark.parametrize(
    ("stage", "limit"),
    # --- tokens: BOS and 6 digits in training, BOS and 1 in validation, BOS and 4 in test ---
    [("fit", 6), ("validate", 1), ("test", 4), ("predict", 4)],
)
def test_long_prompts_are_found_in_setup(counting, plain_tokenizer, stage, limit):
    message = rf"--data.max_prompt_tokens {limit} is less than the {limit + 1} tokens .* '\d+'"
    with pytest.raises(ValueError, match=message):
        module(counting(), plain_tokenizer, max_prompt_tokens=limit).setup(stage)
    data = module(counting(), plain_tokenizer, max_prompt_tokens=limit + 1)
    data.setup(stage)
    data.teardown(stage)


def test_long_validation_prompts_are_found_before_training(counting, plain_tokenizer):
    class LongValidation(counting):
        def validation_problems(self, count):
            return [Problem("x" * 200, "a")]

    with pytest.raises(ValueError, match=rf"max_prompt_tokens 50 .* 201 tokens .*'{'x' * 80}'"):
        module(LongValidation(), plain_tokenizer, max_prompt_tokens=50).setup("fit")


@pytest.mark.parametrize(
    "flag", ["prompts_per_epoch", "group_size", "max_prompt_tokens", "val_batch_size"]
)
def test_counts_are_checked_before_the_tokenizer_is_loaded(counting, flag):
    with pytest.raises(ValueError, match=rf"--data.{flag} must be at least 1; got 0"):
        module(counting(), "/no/tokenizer", **{flag: 0}).setup("fit")
    with pytest.raises(ValueError, match=r"--data.val_problems must not be negative; got -1"):
        module(counting(), "/no/tokenizer", val_problems=-1).setup("fit")
    with pytest.raises(
        ValueError, match=r"--data.val_problems is 0, which leaves nothing to evaluate"
    ):
        module(counting(), "/no/tokenizer", val_problems=0).setup("test")


def test_task_without_a_reward_needs_one(counting, plain_tokenizer):
    with pytest.raises(ValueError, match=r"--data.reward is missing: the task Counting"):
        module(counting(reward=False), "/no/tokenizer").setup("fit")
    data = module(counting(reward=False), plain_tokenizer, reward=ExactAnswer())
    data.setup("fit")
    assert data.scorer.score(["1"], [Problem("0", "1")]).rewards == [1.0]


def test_reward_that_cannot_start_is_found_in_setup(counting, plain_tokenizer):
    data = module(counting(), plain_tokenizer, reward=Sulking())
    with pytest.raises(ValueError, match=r"--data.reward: sulking could not be started"):
        data.setup("fit")
    assert data.scorer is None


def test_a_reward_that_was_built_is_not_waited_for_again(counting, plain_tokenizer, tmp_path):
    """The fit after a validation goes on to sample while the new worker process starts."""
    built = tmp_path / "built"
    built.touch()
    data = module(counting(), plain_tokenizer, reward=Patient(built))
    data.setup("validate")
    data.teardown("validate")
    built.unlink()
    data.setup("fit")  # would wait for the file until the start is given up
    built.touch()
    assert data.scorer.score(["1"], [Problem("0", "1")]).rewards == [1.0]
    data.teardown("fit")


def test_reward_options_reach_the_scorer(counting, plain_tokenizer):
    class Broken(ExactAnswer):
        def score(self, completion, problem):
            raise OSError("no")

    data = module(counting(), plain_tokenizer, reward=Broken(), reward_failure_score=-2.0)
    data.setup("fit")
    scores = data.scorer.score(["1"], [Problem("0", "1")])
    assert (scores.rewards, scores.failures) == ([-2.0], ["OSError: no"])
    data.teardown("fit")
    assert data.scorer is None
    with pytest.raises(ValueError, match=r"--data.reward_timeout_seconds"):
        module(counting(), plain_tokenizer, reward_timeout_seconds=-1.0).setup("fit")


@pytest.mark.parametrize("total", range(1, 14))
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_batches_are_exact_and_level(total, batch_size, world_size):
    if total < world_size:
        return
    ranks = [
        batches_of_rank(list(range(total)), batch_size, rank, world_size)
        for rank in range(world_size)
    ]
    assert [i for batches in ranks for batch in batches for i in batch] == list(range(total))
    assert len({len(batches) for batches in ranks}) == 1
    sizes = {len(batch) for batches in ranks for batch in batches}
    assert min(sizes) >= 1
    assert max(sizes) <= (batch_size if world_size == 1 else max(batch_size, 2))


def test_too_few_problems_for_the_ranks_is_an_error(counting, plain_tokenizer):
    data = on_rank(module(counting(held_out=2), plain_tokenizer, prompts_per_epoch=3), 0, 3)
    with pytest.raises(ValueError, match=r"--data.val_problems: 2 validation .* 3 ranks"):
        data.setup("fit")


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {"val": [], "test": [], "predict": []}

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(texts(batch))

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(texts(batch))

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(texts(batch))


def test_lightning_sees_every_held_out_prompt_once(counting, plain_tokenizer, tmp_path):
    data = module(counting(), plain_tokenizer, val_batch_size=2)
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.validate(recorder, datamodule=data, verbose=False)
    trainer.test(recorder, datamodule=data, verbose=False)
    trainer.predict(recorder, datamodule=data, return_predictions=False)
    assert recorder.seen["val"] == [["0"], ["1", "2"], ["3", "4"]]
    assert recorder.seen["test"] == [["1000"], ["1001", "1002"], ["1003", "1004"]]
    assert recorder.seen["predict"] == recorder.seen["test"]


def test_ranks_get_their_own_share_of_validation(counting, plain_tokenizer):
    options = {"val_batch_size": 2}
    shares = [
        [
            texts(batch)
            for batch in on_rank(
                module(counting(), plain_tokenizer, **options), rank, 2
            ).val_dataloader()
        ]
        for rank in range(2)
    ]
    assert shares == [[["0"], ["1"]], [["2"], ["3", "4"]]]


def test_no_validation_problems_is_no_validation(counting, plain_tokenizer):
    data = module(counting(), plain_tokenizer, val_problems=0)
    data.setup("fit")
    assert len(data.val_dataloader()) == 0


def test_training_loader_is_an_experience_loader(counting, plain_tokenizer, monkeypatch):
    monkeypatch.setattr("rlsgd.data.prompts.ExperienceLoader", lambda *parts: parts)
    data = on_rank(module(counting(), plain_tokenizer), 0, 1)
    assert data.train_dataloader() == (data, data.trainer)
