import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlsgd.core.problems import Problem
from rlsgd.data.tasks.base import Task
from rlsgd.rewards import ExactAnswer

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def save_tokenizer(folder, *, chat_template=None, bos=True):
    """One token a character; a BOS before every text; pad is eos."""
    vocabulary = {token: i for i, token in enumerate(["<eos>", "<bos>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", bos_token="<bos>"
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("chat"), chat_template=TEMPLATE)


class Counting(Task):
    """The question is a number, the answer the number after it."""

    def __init__(self, reward=True, held_out=5, metadata=None):
        self.reward = reward
        self.held_out = held_out
        self.metadata = metadata or {}

    def problems(self, start, count):
        numbers = range(start, start + count)
        return [Problem(str(n), str(n + 1), dict(self.metadata)) for n in numbers]

    def train_problems(self, *, seed, epoch, count):
        return self.problems(100_000 + 10_000 * seed + epoch * count, count)

    def validation_problems(self, count):
        return self.problems(0, min(count, self.held_out))

    def test_problems(self, count):
        return self.problems(1000, min(count, self.held_out))

    def default_reward(self):
        return ExactAnswer() if self.reward else None


@pytest.fixture
def counting():
    return Counting
