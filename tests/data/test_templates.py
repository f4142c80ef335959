"""Templates and tokenizer: what a row becomes, compared with transformers' own rendering and ids."""

import json
import re
import shutil
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.data.template_inversion import extract_input
from lib.data.templates import (
    compile_template,
    format_placeholder,
    list_columns,
    list_template_columns,
    parse_segments,
    render_chats,
    render_completion,
    render_prompt,
)
from lib.data.tokenizer import encode_pairs, load_tokenizer
from lib.data.truncation import shorten_values

CHAT = {"template": "chat", "text_template": None, "system": None, "user": "Classify: {phrase}"}
TEXT = {"text_template": "### Text: {phrase}\n### The tone is:\n{tone}"}
STRANGE = [
    "plain",
    "{phrase} {{x}} {",
    "%s {0.__class__}",
    "ümläut 🙂\ttab\nnew  line",
    "a\u2028b",
    '<b> & "quotes"',
    "é",
]


def compiled(corpus: dict, folder: Path, target: str = "tone"):
    tokenizer = load_tokenizer(folder)
    return tokenizer, compile_template(corpus, tokenizer, task="classification", target=target, labels=None)


def test_segments_name_columns_also_with_spaces_and_dots():
    segments = parse_segments("Q {{literal}}: {Best Answer} by {user.name}{Best Answer}")
    assert segments == [
        {"text": "Q {literal}: "},
        {"column": "Best Answer"},
        {"text": " by "},
        {"column": "user.name"},
        {"column": "Best Answer"},
    ]
    assert list_columns(segments) == ["Best Answer", "user.name"]


NAMES = [
    "body[en]",
    "meta__label",
    "Text: en",
    "Sure!",
    "{x}",
    "Unnamed: 0",
    'say "hi"',
    "it's",
    "'it'",
    "messages.0.content",
]
NAMES += [".a", "a..b", "a\\b", "__class__", " a ", "ümläut", "a\nb", "}", "a]"]


@pytest.mark.parametrize("name", NAMES)
def test_any_column_can_be_written_quoted_or_as_it_is(name):
    assert parse_segments(f"{{{{{format_placeholder(name)}: {{{json.dumps(name)}}}}}}}") == [
        {"text": "{"},
        {"column": name},
        {"text": ": "},
        {"column": name},
        {"text": "}"},
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{a[0]}", '{a[0]} is not a column; write {a}, or quote a name that is written so: {"a[0]"}'),
        ("{a!r}", '{a!r} has a format or conversion; write {a}, or quote a name that is written so: {"a!r"}'),
        ("{a:>9}", '{a:>9} has a format or conversion; write {a}, or quote a name that is written so: {"a:>9"}'),
        ("{'a'}", "{'a'} is not a column"),
        ('{"a}', '{"a} is not a column'),
        ('{"a\\q"}', '{"a\\q"} is not a quoted name; write it as a JSON string'),
        ('{""}', '{""} names no column'),
        ("{}", "{} names no column"),
        ("{ }", "{ } names no column"),
        ("{a", "template '{a': a single {; write a brace that is text as {{ or }}"),
        ("a}", "template 'a}': a single }; write"),
        ('{"text": {text}}', "a single {"),
    ],
)
def test_anything_but_a_column_is_refused(text, what):
    with pytest.raises(UserError) as error:
        parse_segments(text)
    assert what in str(error.value)


def test_columns_of_a_section_leave_the_target_out():
    assert list_template_columns({"text_template": "{b} {a} {b} {tone}"}, "tone") == ["b", "a"]
    assert list_template_columns({"system": "{s}", "user": "{u}"}, "tone") == ["s", "u"]


@pytest.mark.parametrize("value", STRANGE)
def test_values_are_inserted_as_they_are(tiny_model, value):
    for corpus in (TEXT, CHAT):
        _, template = compiled(corpus, tiny_model)
        assert value in render_prompt(template, {"phrase": value})
        assert render_completion(template, value).startswith(value)


def test_text_template_is_cut_before_its_target(tiny_phi3):
    tokenizer, template = compiled(TEXT, tiny_phi3)
    assert render_prompt(template, {"phrase": "x"}) == "### Text: x\n### The tone is:\n"
    assert render_completion(template, "joy") == f"joy{tokenizer.eos}"


@pytest.mark.parametrize(
    "text", ["{phrase} {tone} {phrase}", "{tone} {tone}", "{phrase}", "{tone}", "{tone} is the tone of {phrase}"]
)
def test_text_template_needs_its_target_once_and_last(tiny_phi3, text):
    with pytest.raises(UserError, match="text_template"):
        compiled({"text_template": text}, tiny_phi3)


def test_question_must_not_hold_its_answer(tiny_phi3):
    with pytest.raises(UserError, match="names the target"):
        compiled({**CHAT, "user": "{phrase} {tone}"}, tiny_phi3)


@pytest.mark.parametrize("system", [None, "Answer with one word. {hint}"])
@pytest.mark.parametrize("value", STRANGE)
def test_chat_equals_transformers(tiny_model, system, value):
    from transformers import AutoTokenizer

    tokenizer, template = compiled({**CHAT, "system": system}, tiny_model)
    theirs = AutoTokenizer.from_pretrained(tiny_model)
    values = {"phrase": value, "hint": "{braces}"}
    messages = [{"role": "user", "content": f"Classify: {value}"}]
    if system:
        messages.insert(0, {"role": "system", "content": "Answer with one word. {braces}"})
    asked = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    answered = theirs.apply_chat_template([*messages, {"role": "assistant", "content": "joy"}], tokenize=False)
    assert render_prompt(template, values) == asked
    assert answered.startswith(asked + render_completion(template, "joy"))
    assert render_chats({**CHAT, "system": system}, tokenizer, [(values, "joy")]) == [answered]


def with_chat_template(folder: Path, tmp_path: Path, source: str) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    (copy / "chat_template.jinja").write_text(source, encoding="utf-8")
    return copy


def test_chat_templates_use_what_transformers_offers_them(tiny_llama, tmp_path):
    """`tools` is none (not undefined), `tojson` keeps `<`, `{% generation %}` adds no text."""
    from transformers import AutoTokenizer

    source = (
        "{% if tools is not none %}TOOLS{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}"
        "<|im_start|>{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ {'<': 'ü'} | tojson }}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    folder = with_chat_template(tiny_llama, tmp_path, source)
    _tokenizer, template = compiled(CHAT, folder)
    messages = [{"role": "user", "content": "Classify: x"}, {"role": "assistant", "content": "joy"}]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    assert theirs == render_prompt(template, {"phrase": "x"}) + render_completion(template, "joy")
    assert "TOOLS" not in theirs


def test_chat_template_that_refuses_or_is_missing_is_said(tiny_llama, tmp_path):
    folder = with_chat_template(tiny_llama, tmp_path, "{{ raise_exception('no system role') }}")
    with pytest.raises(UserError, match="no system role"):
        compiled(CHAT, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        compiled(CHAT, folder)


@pytest.mark.parametrize("corpus", [TEXT, CHAT], ids=["text", "chat"])
def test_end_token_comes_once_and_last(tiny_model, corpus):
    tokenizer, template = compiled(corpus, tiny_model)
    pairs = [(render_prompt(template, {"phrase": value}), render_completion(template, "joy")) for value in STRANGE]
    for _, completion in encode_pairs(tokenizer, pairs):
        assert [id_ in tokenizer.end_ids for id_ in completion] == [False] * (len(completion) - 1) + [True]


def test_end_token_of_the_text_template_itself_is_not_doubled(tiny_phi3):
    _tokenizer, template = compiled({"text_template": "{phrase}\n{tone}<|end|>\n"}, tiny_phi3)
    assert render_completion(template, "joy") == "joy<|end|>"
    _tokenizer, template = compiled({"text_template": "{phrase}\n{tone}.\n<|end|>x<|end|>"}, tiny_phi3)
    assert template["completion"] == [{"column": "tone"}, {"text": ".\n"}, {"text": "<|end|>"}]


@pytest.mark.parametrize("answered", ["", "{{ m.content }} {{ m.content }}", "{{ eos_token }}{{ m.content }}"])
def test_chat_template_that_does_not_write_the_answer_once_is_refused(tiny_llama, tmp_path, answered):
    """Left out, written twice, or behind an end token: nothing could be learned from such rows."""
    source = f"{{% for m in messages %}}{{% if m.role == 'user' %}}U{{% else %}}{answered}{{% endif %}}{{% endfor %}}"
    with pytest.raises(UserError, match="writes the answer [02] times before its end token; use corpus.text_template"):
        compiled({**CHAT, "user": "x"}, with_chat_template(tiny_llama, tmp_path, source))


def test_eos_that_does_not_end_generation_is_refused(tiny_phi3, tmp_path):
    folder = with_chat_template(tiny_phi3, tmp_path, "x")
    for name in ("generation_config.json", "config.json"):
        (folder / name).write_text(json.dumps({"eos_token_id": 3}))
    with pytest.raises(UserError, match="not among the ids that end a text"):
        compiled(TEXT, folder)


def with_bos(folder: Path, tmp_path: Path) -> Path:
    """A copy whose tokenizer puts `<s>` before every text, as Llama's does."""
    from tokenizers import Tokenizer, processors

    copy = Path(shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    backend = Tokenizer.from_file(str(copy / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(copy / "tokenizer.json"))
    return copy


@pytest.mark.parametrize("corpus", [TEXT, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("in_template", [False, True])
def test_bos_comes_once_where_the_tokenizer_wants_one(tiny_phi3, tmp_path, corpus, in_template):
    folder = with_bos(tiny_phi3, tmp_path)
    if in_template:
        path = folder / "chat_template.jinja"
        path.write_text("{{ bos_token }}" + path.read_text())
        corpus = {**corpus, **({"text_template": "<s>" + TEXT["text_template"]} if corpus is TEXT else {})}
    tokenizer, template = compiled(corpus, folder)
    assert tokenizer.bos == "<s>"
    ids = tokenizer.encode(render_prompt(template, {"phrase": "x"}))
    assert ids[0] == 1
    assert ids.count(1) == 1


def test_no_bos_where_the_tokenizer_wants_none(tiny_model):
    tokenizer, template = compiled(TEXT, tiny_model)
    assert tokenizer.bos is None
    assert render_prompt(template, {"phrase": "x"}).startswith("### Text")


def test_ids_equal_those_of_transformers(tiny_model):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer, template = compiled(CHAT, tiny_model)
    texts = STRANGE + [render_prompt(template, {"phrase": value}) for value in STRANGE]
    assert tokenizer.encode_batch(texts) == [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [tokenizer.encode(text) for text in texts] == tokenizer.encode_batch(texts)
    assert set(tokenizer.control) == set(theirs.all_special_tokens) | {
        token.content for token in theirs.added_tokens_decoder.values() if token.special
    }
    assert "filler0" not in tokenizer.control  # an added token, but no control token


def test_prompt_whose_end_joins_the_answer_is_an_error(tiny_phi3):
    tokenizer = load_tokenizer(tiny_phi3)
    word = max((word for word in tokenizer.backend.get_vocab() if word.isascii() and word.isalpha()), key=len)
    assert len(tokenizer.encode(word)) == 1
    with pytest.raises(UserError, match="joins the end of the prompt"):
        encode_pairs(tokenizer, [(f"The tone is:\n{word[:2]}", word[2:])])
    assert encode_pairs(tokenizer, [("The tone is:\n", "joy")])[0][1] == tokenizer.encode("joy")


def test_model_without_tokenizer_or_end_token_is_refused(tmp_path, tiny_phi3):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    folder = with_chat_template(tiny_phi3, tmp_path, "x")
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="eos_token_id"):
        load_tokenizer(folder)


TWO = {"text_template": "{context}\n### Text: {phrase}\n### The tone is:\n{tone}"}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_length", [30, 31, 60])
def test_truncation_takes_from_the_longest_value_only(tiny_phi3, side, max_length):
    tokenizer, template = compiled(TWO, tiny_phi3)
    long = "The old dog 🙂 never came home again " * 8
    values = {"context": long.strip(), "phrase": "He laughed."}
    fitted = shorten_values(tokenizer, template, values, "joy", max_length=max_length, side=side)
    tokens = len(tokenizer.encode(render_prompt(template, fitted) + render_completion(template, "joy")))
    assert max_length - 4 < tokens <= max_length  # as much as fits: an emoji of 4 tokens goes as a whole
    assert fitted["phrase"] == "He laughed."
    kept = fitted["context"]
    assert values["context"].startswith(kept) if side == "right" else values["context"].endswith(kept)


def test_truncation_never_touches_what_fits_nor_what_cannot(tiny_phi3):
    tokenizer, template = compiled(TWO, tiny_phi3)
    values = {"context": "🙂", "phrase": "no"}
    assert shorten_values(tokenizer, template, values, "joy", max_length=99, side="right") == values
    assert shorten_values(tokenizer, template, values, "joy" * 50, max_length=20, side="right") is None


ALPACA = "### Instruction:\n{ask}\n{?input}### Input:\n{input}\n{/input}### Response:\n{tone}"
ALPACA_CHAT = {
    "template": "chat",
    "text_template": None,
    "system": None,
    "user": "{ask}{?input}\nInput: {input}{/input}\nDo it.",
}


@pytest.mark.parametrize("corpus", [{"text_template": ALPACA}, ALPACA_CHAT], ids=["text", "chat"])
def test_a_part_that_depends_on_a_column_is_written_only_where_that_is_not_empty(tiny_model, corpus):
    tokenizer, template = compiled(corpus, tiny_model)
    full, empty = {"ask": "Sum up", "input": "one two"}, {"ask": "Sum up", "input": ""}
    assert template["columns"] == ["ask", "input"]
    assert "nput:\n" in render_prompt(template, full) or "Input: one two" in render_prompt(template, full)
    assert "nput:" not in render_prompt(template, empty)
    assert "\n\n### Response" not in render_prompt(template, empty)
    assert extract_input(template, render_prompt(template, full)) == "Sum up\none two"
    assert extract_input(template, render_prompt(template, empty)) == "Sum up"
    if "template" in corpus:
        for values in (full, empty):
            (theirs,) = render_chats(corpus, tokenizer, [(values, "joy")])
            assert theirs.startswith(render_prompt(template, values).removeprefix(tokenizer.bos or ""))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{?a}{b}{tone}", "the part {?a} does not end"),
        ("{?a}{?b}{/b}{/a}{tone}", "{?b} begins within {?a}"),
        ("{a}{/a}{tone}", "{/a} ends no part"),
        ("{?a}x{/b}{tone}", "{/b} ends no part"),
        ("{?}x{/}{tone}", "names no column"),
        ("x{?a}{tone}{/a}", "holds the target, or follows it"),
        ("{a}{tone}{?a}x{/a}", "holds the target, or follows it"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tiny_phi3, text, what):
    with pytest.raises(UserError, match=re.escape(what)):
        compiled({"text_template": text}, tiny_phi3)
