"""Chat templates that refuse, raise, never end, write dates, or end turns with their own token."""

import logging

import pytest
from transformers import AutoTokenizer

from rlsgd.core.problems import Problem
from rlsgd.data import PromptDataModule
from rlsgd.data.reading import CompletionReader
from rlsgd.data.rendering import PromptRenderer
from tests.data.conftest import TEMPLATE, save_tokenizer

REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS_SYSTEM = "{% if messages[0].role == 'system' %}" + ENDLESS + "{% endif %}"


def renderer(folder, template, **options):
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(folder, chat_template=template))
    shared = {"system_prompt": None, "chat_template": None, "prompt_suffix": ""}
    return PromptRenderer(tokenizer, **shared | {"max_prompt_tokens": 500} | options)


@pytest.mark.parametrize(
    "refusal", [REFUSES_SYSTEM, "{% set messages = messages[-1:] %}", ENDLESS_SYSTEM]
)
def test_a_refused_system_message_goes_in_front_of_the_question(refusal, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        prompt = renderer(tmp_path, refusal + TEMPLATE, system_prompt="Count.").render(
            Problem("1", "2")
        )
    assert prompt.text == "<bos>[user]Count.\n\n1[assistant]"
    assert caplog.text.count("the chat template refuses a system message") == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('not\nthis') }}", "refuses the chat that ends with .*not this"),
        ("{{ messages.nothing.here }}", "refuses the chat"),
        (ENDLESS + TEMPLATE, "took more than 2 seconds"),
        ("{{ bos_token }}always the same", "leaves the user's text out"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template, message, tmp_path):
    with pytest.raises(
        ValueError, match=rf"^--data.chat_template: the template {message}"
    ) as error:
        renderer(tmp_path, template)
    assert "\n" not in str(error.value)


def test_arguments_reach_the_template_and_typing_errors_do_not(tmp_path):
    template = TEMPLATE + "{% if enable_thinking is false %}<no>{% endif %}"
    arguments = {"enable_thinking": False}
    prompt = renderer(tmp_path, template, template_arguments=arguments).render(Problem("1", "2"))
    assert prompt.text.endswith("[assistant]<no>")
    with pytest.raises(ValueError, match=r"template_arguments: .*did you mean enable_thinking\?"):
        renderer(tmp_path, template, template_arguments={"enable_thinkng": False})
    with pytest.raises(ValueError, match=r"template_arguments: 'tokenize' is not for you to set"):
        renderer(tmp_path, template, template_arguments={"tokenize": False})


def test_prompts_do_not_depend_on_the_day(tmp_path, caplog):
    template = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE
    with caplog.at_level(logging.INFO):
        prompt = renderer(tmp_path, template).render(Problem("1", "2"))
    assert prompt.text.startswith("26 Jul 2024<bos>")
    assert "writes today's date" in caplog.text
    other = renderer(tmp_path, template, template_date="2025-01-02").render(Problem("1", "2"))
    assert other.text.startswith("02 Jan 2025<bos>")
    with pytest.raises(ValueError, match=r"^--data.chat_template: .* date in a form that it comp"):
        renderer(tmp_path, "{% set day = '%d' %}{{ strftime_now(day) }}" + TEMPLATE)


def test_the_token_that_ends_a_turn_is_found(tmp_path, caplog):
    ends = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<bos>{% endfor %}"
    with caplog.at_level(logging.INFO):
        assert renderer(tmp_path, ends).turn_ends == [1]
    assert "ends a turn with '<bos>', not with eos" in caplog.text
    assert renderer(tmp_path, TEMPLATE).turn_ends == []
    assert renderer(tmp_path, ends.replace("<bos>", "<eos>")).turn_ends == []


def test_thinking_that_the_prompt_has_opened_is_scored_with_its_tag(tmp_path):
    reader = CompletionReader(
        AutoTokenizer.from_pretrained(save_tokenizer(tmp_path)), ("<think>", "</think>"), False
    )
    assert reader.scored("[assistant]<think>\n", "a</think>4") == "<think>\na</think>4"
    assert reader.scored("[assistant]<think>\n\n</think>\n", "4") == "4"


@pytest.mark.parametrize("overlong", ["error", "drop"])
def test_all_prompts_are_measured_at_the_start(overlong, tmp_path, plain_tokenizer, caplog):
    from rlsgd.data.tasks import DatasetTask
    from tests.data.test_layouts import write

    rows = [{"question": f"{n}?", "answer": "1"} for n in range(20)]
    rows.append({"question": "9" * 60, "answer": "1"})
    task = DatasetTask(write(tmp_path, rows), held_out_fraction=0.2)
    data = PromptDataModule(
        task, plain_tokenizer, prompts_per_epoch=2, max_prompt_tokens=50, overlong=overlong,
        reward=lambda completion: 0, val_problems=2,
    )  # fmt: skip
    data._check_flags("fit")
    if overlong == "error":
        with pytest.raises(ValueError, match=r"--data.max_prompt_tokens 50: 1 of \d+ \w+ prompts"):
            data._check_lengths("fit")
            data._check_lengths("test")
        return
    with caplog.at_level(logging.INFO):
        data._check_lengths("fit")
        data._check_lengths("test")
    kept = [p.question for split in ("train", "validation", "test") for p in task.rows(split)]
    assert len(kept) == 20 and "9" * 60 not in kept
    assert "(the longest has 61 tokens) and are left out" in caplog.text
