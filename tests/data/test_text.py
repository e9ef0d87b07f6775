"""Text becomes blocks: which tokens, in which order, and what each of them may see."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from rlsgd.data import TextDataModule
from rlsgd.data.text_files import read_documents
from tests.helpers.tiny_models import EOS, VOCABULARY, character_tokenizer

WORDS = [f"{chr(97 + i % 20)}{'xyz'[i % 3] * (i % 5 + 1)} {i}" for i in range(60)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer(tmp_path):
    character_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def jsonl(path, texts, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def data(tmp_path, tokenizer):
    def make(texts=WORDS, **options):
        sizes = {"sequence_length": 8, "batch_size": 4, "batches_per_epoch": 3, "val_blocks": 3}
        path = jsonl(tmp_path / "text.jsonl", texts)
        return TextDataModule(path, tokenizer, **{**sizes, **options})

    return make


def ids(text):
    return [VOCABULARY[character] for character in text]


# ---- files


def test_formats_give_the_same_documents(tmp_path):
    texts = ["first text", "second\ntext", "third"]
    jsonl(tmp_path / "j" / "a.jsonl", texts[:2])
    jsonl(tmp_path / "j" / "deeper" / "b.jsonl", ["  ", *texts[2:]])  # blank ones are left out
    Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "p.parquet")
    (tmp_path / "t").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "t" / f"{number}.txt").write_text(text)
    (tmp_path / "lone.txt").write_text("\n\n".join(texts))
    options = {"column": "text", "txt_unit": "document"}
    assert read_documents(str(tmp_path / "j"), **options) == texts
    assert read_documents(str(tmp_path / "p.parquet"), **options) == texts
    assert read_documents(str(tmp_path / "t"), **options) == texts
    assert read_documents(str(tmp_path / "lone.txt"), **options) == ["\n\n".join(texts)]
    paragraphs = read_documents(str(tmp_path / "lone.txt"), column="text", txt_unit="paragraph")
    assert [p.strip() for p in paragraphs] == texts
    lines = read_documents(str(tmp_path / "lone.txt"), column="text", txt_unit="line")
    assert lines == ["first text", "second", "text", "third"]


def test_a_prepared_text_is_found_by_its_name(tmp_path):
    jsonl(tmp_path / "cache" / "text" / "mine" / "mine.jsonl", ["a", "b"])
    assert read_documents("mine", column="text", txt_unit="document") == ["a", "b"]


def test_wrong_paths_and_columns_name_their_flag(tmp_path):
    def read(path, column="text"):
        return read_documents(str(path), column=column, txt_unit="document")

    with pytest.raises(ValueError, match=r"--data.path no/such: .*rlsgd data prepare text"):
        read("no/such")
    with pytest.raises(ValueError, match=r"--data.text_column: .*no column 'body'.* text"):
        read(jsonl(tmp_path / "a" / "a.jsonl", ["x"]), column="body")
    (tmp_path / "null.jsonl").write_text('{"text": "x"}\n{"text": null}\n')
    with pytest.raises(ValueError, match=r"--data.text_column: 'text' of row 1 .*NoneType, not"):
        read(tmp_path / "null.jsonl")
    (tmp_path / "number.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(ValueError, match=r"--data.text_column: 'text' of row 0 .* is int, not"):
        read(tmp_path / "number.jsonl")
    (tmp_path / "a" / "b.txt").write_text("y")
    with pytest.raises(ValueError, match=r"--data.path .*several formats \(.jsonl, .txt\)"):
        read(tmp_path / "a")
    (tmp_path / "pickle.pkl").write_text("y")
    with pytest.raises(ValueError, match=r"--data.path .* must end in one of"):
        read(tmp_path / "pickle.pkl")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"--data.path .*: no text"):
        read(tmp_path / "empty.txt")


# ---- split


def test_held_out_documents_are_never_trained_on_and_equal_ones_stay_together(data):
    texts = WORDS + WORDS[:30]
    module = data(texts, val_fraction=0.2)
    train, held_out = module.split
    assert len(held_out) == 12 and set(train) | set(held_out) == set(WORDS)
    assert not set(train) & set(held_out)
    assert train == [text for text in texts if text not in held_out]  # in order, with repetitions
    again = data(texts[::-1], val_fraction=0.2, seed=5)
    assert again.split[1] == held_out, "the choice depends on the texts and split_seed alone"
    assert data(texts, val_fraction=0.2, split_seed=1).split[1] != held_out


def test_one_document_cannot_be_split(data):
    with pytest.raises(ValueError, match=r"--data.path .* 1 different documents .*txt_unit"):
        data(["only one", "only one"]).setup("fit")


# ---- blocks


def test_every_token_is_predicted_once_in_a_pass(data):
    module = data(document_attention="stream")
    stream = module.train_stream
    expected = [i for text in module.split[0] for i in [*ids(text), EOS]]
    assert stream.token_ids.tolist() == expected
    count = module.num_blocks(stream)
    assert 0 <= len(expected) - 1 - count * 7 < 7, "what does not fill a block is left out"
    batch = module.blocks(stream, list(range(count)))
    assert batch.input_ids.shape == (count, 8)
    assert batch.input_ids[batch.completion_mask].tolist() == expected[1 : 1 + count * 7]
    assert batch.position_ids is None and bool(batch.attention_mask.all())
    assert int(batch.denominator) == count * 7


def test_isolated_documents_restart_and_do_not_predict_the_first_token_of_the_next(data):
    module = data()
    stream = module.train_stream
    count = module.num_blocks(stream)
    batch = module.blocks(stream, list(range(count)))
    assert batch.position_ids is not None
    # --- walk through every block by hand ---
    previous = EOS
    for row in range(count):
        position, seen = 0, []
        for column, token in enumerate(batch.input_ids[row].tolist()):
            begins = column == 0 or previous == EOS  # every document ends in eos, and only there
            position = 0 if begins else position + 1
            seen.append((position, not begins))
            previous = token
        assert batch.position_ids[row].tolist() == [p for p, _ in seen]
        assert batch.completion_mask[row].tolist() == [scored for _, scored in seen]
    assert int(batch.denominator) == int(batch.completion_mask.sum()) < count * 7


def test_epochs_go_through_all_blocks_in_an_order_of_seed_and_epoch(data):
    def rows(module, epoch, **share):
        return [tuple(r) for b in module.batches(epoch, **share) for r in b.input_ids.tolist()]

    module = data(seed=1)
    count = module.num_blocks(module.train_stream)
    everything = module.blocks(module.train_stream, list(range(count))).input_ids.tolist()
    drawn = [row for epoch in range(-(-2 * count // 12)) for row in rows(module, epoch)]
    assert sorted(drawn[:count]) == sorted(map(tuple, everything))  # each once in a pass
    assert sorted(drawn[count : 2 * count]) == sorted(drawn[:count])
    assert drawn[count : 2 * count] != drawn[:count]
    assert rows(module, 2) == rows(data(seed=1), 2), "an epoch does not depend on those before"
    assert rows(module, 2) != rows(data(seed=2), 2)


def test_ranks_and_accumulation_share_one_denominator(data):
    module = data(batches_per_epoch=4)
    whole = list(module.batches(0))
    shares = [list(module.batches(0, rank=r, world_size=2, accumulate=2)) for r in range(2)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert torch.equal(torch.cat([p.input_ids for p in parts]), batch.input_ids)
        window = whole[number // 2 * 2 : number // 2 * 2 + 2]
        expected = sum(int(b.completion_mask.sum()) for b in window)
        assert [int(p.denominator) for p in parts] == [expected] * 2
        assert int(batch.denominator) == int(batch.completion_mask.sum())
    assert len({int(b.denominator) for b in whole}) > 1, "or the test shows nothing"


def test_validation_blocks_are_shared_out_whole(data):
    module = data(val_fraction=0.4, val_blocks=5, val_batch_size=2)
    seen = []
    for rank in range(2):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        seen += [row for batch in module.val_dataloader() for row in batch.input_ids.tolist()]
    assert seen == module.blocks(module.val_stream, list(range(5))).input_ids.tolist()
    assert data(val_blocks=0).val_dataloader() == []


# ---- flags


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--data.batch_size must be at least 1"),
        ({"batches_per_epoch": 0}, "--data.batches_per_epoch must be at least 1"),
        ({"val_batch_size": 0}, "--data.val_batch_size must be at least 1"),
        ({"sequence_length": 1}, "--data.sequence_length must be at least 2"),
        ({"val_blocks": -1}, "--data.val_blocks must not be negative"),
        ({"val_fraction": 0.0}, "--data.val_fraction must be between 0 and 1"),
        ({"sequence_length": 5000}, "--data.sequence_length 5000 is more than the"),
        ({"sequence_length": 100}, "--data.val_fraction 0.05: the 3 held-out documents fill 0"),
    ],
)
def test_wrong_values_are_refused_in_setup(data, options, message):
    with pytest.raises(ValueError, match=message):
        data(**options).setup("fit")


def test_the_trainer_must_be_able_to_share_and_accumulate(data):
    module = data()
    module.trainer = SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"--trainer.accumulate_grad_batches 2 does not divide"):
        module.setup("fit")
    module.trainer = SimpleNamespace(global_rank=0, world_size=3, accumulate_grad_batches=1)
    with pytest.raises(ValueError, match=r"--data.batch_size 4 cannot be divided among 3 ranks"):
        module.setup("fit")


def test_there_is_no_test_set(data):
    with pytest.raises(ValueError, match=r"--data TextDataModule has nothing to test"):
        data().setup("test")
