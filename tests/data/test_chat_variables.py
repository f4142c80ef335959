"""Chat templates that ask for a date or read variables: set once, the same for every row and in what ships."""

import json

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lib.core.cli import UserError
from lib.data.chat_templates import set_chat_variables
from lib.data.templates import compile_template, render, set_up_chat
from lib.data.tokenizer import load_tokenizer
from lib.data.trained_chat_template import render_trained_chat_template

DATED = (
    "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %B %Y') + '<|im_end|>\n' }}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
THINKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
CORPUS = {"template": "chat", "user": "Tone? {phrase}"}


@pytest.fixture
def tokenizer(tiny_llama, tmp_path):
    def build(template: str):
        (tmp_path / "base").mkdir()
        for file in tiny_llama.iterdir():
            if file.suffix == ".json":
                (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
        (tmp_path / "base" / "chat_template.jinja").write_text(template)
        return load_tokenizer(tmp_path / "base")

    return build


def compiled(tokenizer, **more):
    corpus = CORPUS | more
    return compile_template(corpus, set_up_chat(tokenizer, corpus), task="generation", target="tone", labels=None)


def test_a_template_that_asks_for_the_date_is_told_the_configured_one(tokenizer):
    template = compiled(tokenizer(DATED), chat_date="2026-01-31")
    assert render(template["prompt"], {"phrase": "x"}).startswith(
        "<|im_start|>system\nToday: 31 January 2026<|im_end|>"
    )


def test_without_a_date_it_is_refused_with_the_key_that_helps(tokenizer):
    with pytest.raises(UserError, match=r"strftime_now.*write corpus\.chat_date, such as 2026-01-31"):
        compiled(tokenizer(DATED))


def test_an_option_moves_empty_thoughts_from_the_answer_into_the_prompt(tokenizer):
    base = tokenizer(THINKS)
    before, after = compiled(base), compiled(base, chat_options={"enable_thinking": False})
    thoughts = "<think>\n\n</think>\n\n"
    assert render(before["completion"], {"tone": "joy"}).startswith(thoughts)
    assert render(after["prompt"], {"phrase": "x"}).endswith(thoughts)
    assert render(after["completion"], {"tone": "joy"}).startswith("joy")
    both = [
        render(one["prompt"], {"phrase": "x"}) + render(one["completion"], {"tone": "joy"}) for one in (before, after)
    ]
    assert both[0] == both[1]


def test_an_option_that_the_template_does_not_read_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"corpus\.chat_options: .* has no variable enable_thinkin; take it out"):
        compiled(tokenizer(THINKS), chat_options={"enable_thinkin": False})


@pytest.mark.parametrize("value", [True, False, 3, 'say "x"', "ü {{ 1 }}"])
def test_values_reach_the_template_as_they_are(value):
    source = set_chat_variables("{{ mood | tojson }}", {"mood": value}, None)
    environment = ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = json.dumps
    assert json.loads(environment.from_string(source).render()) == value


def test_what_ships_with_conversations_needs_nobody_to_know_the_date():
    source = set_chat_variables(DATED, {"enable_thinking": False}, "2026-01-31")
    shipped = render_trained_chat_template({"conversation": {"template": source}})
    text = (
        ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        .from_string(shipped)
        .render(messages=[{"role": "user", "content": "x"}], add_generation_prompt=True)
    )
    assert "Today: 31 January 2026<" in text
    assert text.endswith("</think>\n\n")


def test_a_tokenizer_without_a_chat_template_takes_no_options(tiny_llama, tmp_path):
    plain = load_tokenizer(tiny_llama)
    bare = type(plain)(**{**plain.__dict__, "chat_template": None})
    with pytest.raises(UserError, match="the tokenizer has none"):
        set_up_chat(bare, {"chat_date": "2026-01-31"})


def test_a_date_that_nobody_asks_for_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"corpus\.chat_date: the tokenizer's chat template asks for no date"):
        compiled(tokenizer(THINKS), chat_date="2026-01-31")


def test_a_newline_that_a_template_begins_with_stays():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    source = set_chat_variables("\n{{ mood }}", {"mood": 1}, None)
    assert environment.from_string(source).render() == "\n1"
