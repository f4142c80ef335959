"""The packaged chat template renders the trained prompt, for whoever renders it; what was not trained is refused."""

import shutil
from pathlib import Path

import pytest

from lib.data.chat_templates import render_each_conversation
from lib.data.templates import compile_template, render_completion, render_prompt
from lib.data.tokenizer import load_tokenizer
from lib.data.trained_chat_template import find_question, render_trained_chat_template

HARD = 'a "quoted" \\ {{ x }} {% y %} \'s\nünï 🙂\ttab <b>&amp;'
CORPORA = {
    "text": {"text_template": f"### {HARD.replace('{', '{{').replace('}', '}}')} {{phrase}}\nTone:\n{{tone}}"},
    "first": {"text_template": "{phrase}\nTone:\n{tone}"},
    "chat": {"template": "chat", "system": "Be short. {{}}", "user": "Tone of: {phrase}?"},
    "two": {"text_template": "Ticket: {phrase}\n{body}\nTone:\n{tone}"},
    "optional": {"text_template": "Do: {phrase}\n{?body}In: {body}\n{/body}Tone:\n{tone}"},
    "optional_first": {"text_template": "Do:\n{?body}In: {body}\n{/body}{phrase}\nTone:\n{tone}"},
}
ROWS = [{"phrase": HARD, "body": "b"}, {"phrase": "plain", "body": HARD}, {"phrase": "x", "body": ""}]


def rows(name: str) -> list[dict[str, str]]:
    return ROWS if "optional" in name else ROWS[:2]


@pytest.fixture(params=CORPORA)
def compiled(request, tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    corpus = CORPORA[request.param]
    return request.param, tokenizer, compile_template(corpus, tokenizer, task="generation", target="tone", labels=None)


def ask(source: str, *contents: object, roles=("user", "assistant")) -> str | dict[str, str]:
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return render_each_conversation(source, [(messages, None)], {"bos_token": "<never>", "eos_token": "<never>"})[0]


def test_a_turn_of_the_user_becomes_the_trained_prompt(compiled):
    name, _, template = compiled
    source = render_trained_chat_template(template)
    for row in rows(name):
        prompt = render_prompt(template, row)
        question = find_question(template, prompt)
        assert ask(source, question) == prompt
        assert ask(source, question, "joy") == prompt + render_completion(template, "joy")
    if len(template["columns"]) == 1:
        assert ask(source, f"  {HARD}\n") == render_prompt(template, ROWS[0]), "no value begins or ends with a space"


def test_text_parts_are_the_columns_in_their_order(compiled):
    name, _, template = compiled
    source = render_trained_chat_template(template)
    for row in rows(name):
        parts = [{"type": "text", "text": row[column]} for column in template["columns"]]
        assert ask(source, parts) == render_prompt(template, row)
    refused = ask(source, [{"type": "text", "text": "a"}] * 3)
    assert refused == {"error": f"give a text, or one text part for each of: {', '.join(template['columns'])}"}


@pytest.mark.parametrize(
    "roles", [("system", "user"), ("user", "user"), ("user", "assistant", "user"), ("assistant",), ("user", "tool")]
)
def test_what_was_not_trained_is_refused(compiled, roles):
    source = render_trained_chat_template(compiled[2])
    said = ask(source, *("a" for _ in roles), roles=roles)
    assert said == {"error": "this model was trained on one question: give one turn of the user, and no other"}


def test_transformers_and_onnx_runtime_ask_for_the_ids_that_were_trained(compiled, tiny_model, tmp_path):
    """With the base model's own template, they would not."""
    import check_tokenizer
    from transformers import AutoTokenizer

    name, tokenizer, template = compiled
    source = render_trained_chat_template(template)
    prompts = [render_prompt(template, row) for row in rows(name)]
    folder = Path(shutil.copytree(tiny_model, tmp_path / "merged"))
    (folder / "chat_template.jinja").write_text(source)
    (tmp_path / "empty").mkdir()
    model = check_tokenizer.write_empty_model(str(tmp_path / "empty"), tiny_model, source)
    with check_tokenizer.open_onnx_tokenizer(model) as onnx:
        for prompt in prompts:
            messages = [{"role": "user", "content": find_question(template, prompt)}]
            theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)
            assert theirs["input_ids"] == tokenizer.encode(prompt)
            assert onnx.ask(messages[0]["content"]) == tokenizer.encode(prompt)
            base = AutoTokenizer.from_pretrained(tiny_model).apply_chat_template(messages, add_generation_prompt=True)
            assert base["input_ids"] != tokenizer.encode(prompt)


def test_conversations_keep_the_template_that_rendered_them():
    chat = {"column": "messages", "template": "{{ 1 }}", "variables": {}, "bos": ""}
    assert render_trained_chat_template({"conversation": chat}) == "{{ 1 }}"
