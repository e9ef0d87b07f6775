from types import SimpleNamespace

import pytest
import torch

from rlsgd.core.problems import Problem
from rlsgd.data import SolutionDataModule

EOS, BOS = 0, 1


def module(task, tokenizer, **options):
    return SolutionDataModule(task, tokenizer, batches_per_epoch=2, batch_size=2, **options)


@pytest.fixture
def ragged(counting):
    class Ragged(counting):
        def train_problems(self, *, seed, epoch, count):
            return [Problem("x" * (i + 1), "y" * (3 - i)) for i in range(3)][:count] + [
                Problem(f"{epoch}", "z")
            ] * (count - 3)

    return Ragged


def test_batch_is_prompt_answer_eos_and_padding(ragged, plain_tokenizer):
    data = module(ragged(), plain_tokenizer, answer_prefix="=")
    vocabulary = data.tokenizer.get_vocab()
    x, y, prefix = (vocabulary[c] for c in "xy=")
    batch = next(data.batches(0))
    expected = torch.tensor([[BOS, x, prefix, y, y, y, EOS], [BOS, x, x, prefix, y, y, EOS]])
    torch.testing.assert_close(batch.input_ids, expected, rtol=0, atol=0)
    assert batch.completion_mask.long().tolist() == [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    assert batch.attention_mask.all()
    assert batch.completions == ["=yyy", "=yy"]
    assert [prompt.text for prompt in batch.prompts] == ["x", "xx"]


def test_padding_is_on_the_right_and_is_not_the_real_eos(ragged, plain_tokenizer):
    data = module(ragged(), plain_tokenizer)
    batch = list(data.batches(7))[1]
    # --- row 0: bos x x x | y eos; row 1: bos 7 | z eos, then two pads, which are eos too ---
    assert batch.input_ids[1, 3:].tolist() == [EOS, EOS, EOS]
    assert batch.attention_mask.long().tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert batch.completion_mask.long().tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0]]


def test_loader_is_sized_and_follows_the_epoch_of_the_trainer(counting, plain_tokenizer):
    data = module(counting(), plain_tokenizer)
    data.trainer = SimpleNamespace(
        global_rank=0, world_size=1, current_epoch=3, accumulate_grad_batches=1
    )
    loader = data.train_dataloader()
    assert len(loader) == 2
    questions = [[prompt.text for prompt in batch.prompts] for batch in loader]
    assert questions == [["100012", "100013"], ["100014", "100015"]]
    data.trainer.current_epoch = 4
    assert next(iter(loader)).prompts[0].text == "100016"


def test_ranks_share_every_batch(counting, plain_tokenizer):
    data = module(counting(), plain_tokenizer)
    shares = [
        [[p.text for p in batch.prompts] for batch in data.batches(0, rank=rank, world_size=2)]
        for rank in range(2)
    ]
    assert shares == [[["100000"], ["100002"]], [["100001"], ["100003"]]]
    with pytest.raises(ValueError, match=r"--data.batch_size 2 cannot be divided among 3 ranks"):
        next(data.batches(0, rank=0, world_size=3))


def test_problems_without_an_answer_are_found_in_setup(counting, plain_tokenizer):
    class Unanswered(counting):
        def train_problems(self, *, seed, epoch, count):
            return [*self.problems(5, count - 1), Problem("open question", "")]

    data = module(Unanswered(), plain_tokenizer)
    with pytest.raises(ValueError, match=r"--data.task: no answer on record for 'open question'"):
        data.setup("fit")
    data.setup("validate")


@pytest.mark.parametrize("flag", ["batches_per_epoch", "batch_size"])
def test_counts_are_checked(counting, flag):
    data = SolutionDataModule(counting(), "/no/tokenizer", **{flag: 0})
    with pytest.raises(ValueError, match=rf"--data.{flag} must be at least 1; got 0"):
        data.setup("fit")


def test_tokenizer_without_eos_is_an_error(counting, plain_tokenizer, monkeypatch):
    data = module(counting(), plain_tokenizer)
    data.tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"--data.tokenizer: it has no end-of-sequence token"):
        data.setup("fit")


def test_packed_rows_hold_every_solution_once(ragged, plain_tokenizer):
    data = SolutionDataModule(
        ragged(),
        plain_tokenizer,
        batches_per_epoch=1,
        batch_size=4,
        packing=True,
        packed_row_tokens=12,
    )
    vocabulary = data.tokenizer.get_vocab()
    x, y, z, zero = (vocabulary[c] for c in "xyz0")
    [batch] = data.batches(0)
    # six tokens each of the first three, four of the last; longest first, two to a row
    assert batch.input_ids.tolist() == [
        [BOS, x, y, y, y, EOS, BOS, x, x, y, y, EOS],
        [BOS, x, x, x, y, EOS, BOS, zero, z, EOS, EOS, EOS],
    ]
    assert batch.position_ids.tolist() == [
        [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 1],
    ]
    assert batch.completion_mask.long().tolist() == [
        [0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0],
    ]
    assert int(batch.denominator) == int(batch.completion_mask.sum()) == 11


def test_ranks_and_accumulation_share_one_denominator(ragged, plain_tokenizer):
    data = SolutionDataModule(ragged(), plain_tokenizer, batches_per_epoch=2, batch_size=2)
    counts = [int(batch.completion_mask.sum()) for batch in data.batches(0)]
    assert counts == [7, 4]
    for rank in range(2):
        alone = data.batches(0, rank=rank, world_size=2)
        assert [int(batch.denominator) for batch in alone] == counts
        together = data.batches(0, rank=rank, world_size=2, accumulate=2)
        assert [int(batch.denominator) for batch in together] == [11, 11]
