"""Conversations: which turns are trained, held against the same turns alone; what is no conversation is set aside."""

import dataclasses
import json

import pytest
import torch
import yaml
from permuted_label_control import add_sources, build_raw_row, derive_configuration

from lib.config.loader import load_config
from lib.core.cli import UserError
from lib.core.files import read_jsonl, write_jsonl
from lib.data.conversations import (
    TURNS,
    ConversationError,
    find_conversation,
    list_separators,
    read_messages,
    read_question,
    read_tools,
    render_messages,
    render_question,
)
from lib.data.template_inversion import extract_input
from lib.data.templates import compile_conversation
from lib.data.tokenizer import load_tokenizer
from lib.models.loading import load_model
from lib.training.batching import IGNORED, encode_rows
from support.data_stages import audit, render
from support.paths import ROOT
from support.tiny_models import tiny_tokenizer

CHAT = {"text_template": None}


def turns(*contents: str, system: str = "") -> list[dict]:
    """Turns of user and assistant, in this order."""
    roles = ("user", "assistant")
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": roles[place % 2], "content": text} for place, text in enumerate(contents)]


LONG = turns("Hi there", "Hello. What is it?", "It rained on us", "Oh no", "and then", "sadness", system="Be short.")


def rendered(folder, *conversations, only_last: bool = False):
    tokenizer = load_tokenizer(folder)
    return tokenizer, render_messages(tokenizer, [(one, None) for one in conversations], only_last=only_last)


def test_supervised_ids_are_those_of_each_assistant_turn_rendered_alone(tiny_model):
    """As TRL's assistant-only loss marks them: what the template writes for a turn, its end token included."""
    tokenizer, (whole,) = rendered(tiny_model, LONG)
    row = {"id": "a" * 64, "prompt": whole.prompt, "completion": whole.completion, "spans": whole.spans}
    (example,) = encode_rows(tokenizer, [row], loss="completion", max_length=512)
    supervised = [id_ for id_ in example["labels"] if id_ != IGNORED]
    alone = []
    for place, turn in enumerate(LONG):
        if turn["role"] == "assistant":
            _, (one,) = rendered(tiny_model, LONG[: place + 1], only_last=True)
            alone += tokenizer.encode(one.completion)
    assert supervised == alone
    assert len(whole.spans) == 2
    _, (last,) = rendered(tiny_model, LONG, only_last=True)
    assert (last.prompt, last.completion, last.spans) == (whole.prompt, whole.completion, [])


def test_the_loss_of_a_conversation_is_the_sum_over_its_turns_alone(tiny_model):
    tokenizer, (whole,) = rendered(tiny_model, LONG)
    model = load_model(tiny_model, torch.float32)

    def loss(one) -> float:
        row = {"id": "a" * 64, "prompt": one.prompt, "completion": one.completion, "spans": one.spans}
        (example,) = encode_rows(tokenizer, [row], loss="completion", max_length=512)
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum").item()

    ends = [place + 1 for place, turn in enumerate(LONG) if turn["role"] == "assistant"]
    _, alone = rendered(tiny_model, *(LONG[:end] for end in ends), only_last=True)
    assert loss(whole) == pytest.approx(sum(map(loss, alone)), rel=1e-5)


# With the marks by which transformers, and so TRL's assistant-only loss, knows what the assistant says.
MARKED = {
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|eot_id|>{% endgeneration %}"
        "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "gemma3": (
        "{{ bos_token }}{% for m in messages[1:] %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<end_of_turn>{% endgeneration %}"
        "{% else %}{% if loop.first %}{{ messages[0].content }}\n\n{% endif %}{{ m.content | trim }}<end_of_turn>{% endif %}"
        "\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "phi3": (
        "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "qwen2.5": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}"
        "<|im_end|>{% endgeneration %}{% else %}{{ m.content | trim }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


# End of a turn, other control tokens, begin of a text.
CONTROL = {
    "llama3": ("<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], "<|begin_of_text|>"),
    "gemma3": ("<end_of_turn>", ["<start_of_turn>"], "<bos>"),
    "phi3": ("<|end|>", ["<|system|>", "<|user|>", "<|assistant|>"], "<s>"),
    "qwen2.5": ("<|im_end|>", ["<|im_start|>"], None),
}


@pytest.mark.parametrize("family", MARKED)
def test_supervised_ids_are_those_of_the_assistant_mask_of_transformers(tmp_path, family):
    end, others, bos = CONTROL[family]
    roles = {"eos_token": end, **({"bos_token": bos} if bos else {})}
    theirs = tiny_tokenizer([end, *others, *([bos] if bos else [])], roles, MARKED[family])
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 0}')
    tokenizer = load_tokenizer(tmp_path)
    (ours,) = render_messages(tokenizer, [(LONG, None)], only_last=False)
    row = {"id": "a" * 64, "prompt": ours.prompt, "completion": ours.completion, "spans": ours.spans}
    (example,) = encode_rows(tokenizer, [row], loss="completion", max_length=512)
    marked = theirs.apply_chat_template(LONG, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    wanted = [id_ for id_, mask in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mask]
    assert [id_ for id_ in example["labels"] if id_ != IGNORED] == wanted
    assert wanted.count(theirs.eos_token_id) == 3


def test_a_conversation_is_what_transformers_renders(tiny_model):
    from transformers import AutoTokenizer

    _, (ours,) = rendered(tiny_model, LONG)
    theirs = AutoTokenizer.from_pretrained(tiny_model).apply_chat_template(LONG, tokenize=False)
    bos = load_tokenizer(tiny_model).bos or ""
    assert theirs.removeprefix(bos).startswith((ours.prompt + ours.completion).removeprefix(bos))


def test_forms_of_conversations_are_read_alike(tiny_phi3):
    openai = {"messages": turns("Hi", "joy", system="S")}
    parts = {
        "messages": [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": " joy "},
        ]
    }
    sharegpt = {
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "joy"},
        ]
    }
    nested = {"data": {"messages": openai["messages"]}}
    found = [read_messages(row, find_conversation(row)) for row in (openai, parts, sharegpt, nested)]
    assert all(messages == openai["messages"] for messages in found)
    assert find_conversation({"rows": [{"a": 1}], "text": "x"}) is None
    assert read_question({"messages": turns("Hi")}, "messages") == turns("Hi")


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ("text", "holds no list of turns"),
        ([], "the last turn is not the assistant's"),
        (turns("Hi"), "the last turn is not the assistant's"),
        ([{"role": "assistant", "content": "Hi"}], "turn 1 is of the role 'assistant', behind the start"),
        ([*turns("a"), *turns("b", "c")], "turn 2 is of the role 'user', behind 'user'"),
        ([{"role": "narrator", "content": "a"}], "turn 1 is of the unknown role 'narrator'"),
        ([{"content": "a"}], "turn 1 has no role"),
        (turns("a", " "), "turn 2 is empty"),
        ([{"role": "user", "content": [{"type": "image"}]}], "turn 1 is not text"),
        (
            [*turns("a", "b"), {"role": "system", "content": "late"}],
            "turn 3 is of the role 'system', behind 'assistant'",
        ),
    ],
)
def test_what_is_no_conversation_is_told_by_its_turn(messages, what):
    with pytest.raises(ConversationError, match=what):
        read_messages({"messages": messages}, "messages")


FORGETS = (  # as Qwen3 writes its thinking: of the last turn alone
    "{% for m in messages %}<|{{ m.role }}|>\n{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def test_a_template_that_renders_earlier_turns_otherwise_is_refused_or_trained_on_the_last(tiny_phi3):
    tokenizer = dataclasses.replace(load_tokenizer(tiny_phi3), chat_template=FORGETS)
    with pytest.raises(
        UserError, match=r"the assistant's turn 1 otherwise once later ones follow; set corpus.turns: last"
    ):
        render_messages(tokenizer, [(turns("a", "b", "c", "d"), None)], only_last=False)
    (one,) = render_messages(tokenizer, [(turns("a", "b", "c", "d"), None)], only_last=True)
    assert one.completion == "<think></think>d<|end|>"
    template = compile_conversation(tokenizer, task="generation", target="messages", labels=None)
    assert template["completion"] == [{"text": "<think></think>"}, {"column": "messages"}, {"text": "<|end|>"}]


def test_a_template_that_refuses_one_conversation_does_not_stop_the_others(tiny_phi3):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + FORGETS
    tokenizer = dataclasses.replace(load_tokenizer(tiny_phi3), chat_template=strict)
    found = render_messages(tokenizer, [(turns("a", "b", system="S"), None), (turns("a", "b"), None)], only_last=True)
    assert found[0] == "no system"
    assert found[1].completion.endswith("b<|end|>")


@pytest.mark.parametrize("tools", [7, [None], "text", {"a": [1]}])
def test_tools_that_a_template_cannot_take_set_their_row_aside(tiny_phi3, tools):
    source = "{% for tool in tools %}{{ tool.name.upper() }}{% endfor %}" + FORGETS
    tokenizer = dataclasses.replace(load_tokenizer(tiny_phi3), chat_template=source)
    conversations = [(turns("a", "b"), tools), (turns("a", "b"), [{"name": "look"}])]
    refused, good = render_messages(tokenizer, conversations, only_last=True)
    assert isinstance(refused, str) or tools == {"a": [1]}
    assert good.prompt.startswith("LOOK")


def test_control_tokens_in_calls_and_tools_set_a_row_aside(tmp_path, tiny_phi3):
    call = {"function": {"name": "look", "arguments": {"at": "<|end|>"}}}
    asked = [
        *turns("Rain?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "no"},
    ]
    rows = [
        {"messages": [*asked, {"role": "assistant", "content": "joy"}]},
        {"messages": turns("Sun?", "joy"), "tools": [{"<|user|>": 1}]},
        {"messages": turns("Snow?", "joy"), "tools": [{"name": "look"}]},
        {"messages": turns("Snow?", "joy")},
    ]
    _, kept, rejected = audit(tmp_path, tiny_phi3, rows, conversation="messages", target="messages")
    assert [one["number"] for one in kept] == [4]
    assert [one["detail"] for one in rejected] == [
        "'a call or a tool' contains '<|end|>'",
        "'a call or a tool' contains '<|user|>'",
        "the chat template does not write the tool 'look': choose a model that knows tools",
    ]


def test_tools_and_calls_go_to_the_template(tiny_phi3):
    source = (
        "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    tokenizer = dataclasses.replace(load_tokenizer(tiny_phi3), chat_template=source)
    call = {"function": {"name": "look", "arguments": {"at": "rain"}}}
    row = {
        "messages": [
            *turns("Rain?"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "yes"},
            {"role": "assistant", "content": "It rains"},
        ]
    }
    (one,) = render_messages(tokenizer, [(read_messages(row, "messages"), [{"name": "look"}])], only_last=False)
    assert one.prompt.startswith('{"name": "look"}')
    ((start, end),) = one.spans
    assert one.prompt[start:end] == json.dumps(call["function"]) + "<|end|>"


@pytest.mark.parametrize("arguments", [{"at": "rain"}, '{"at": "rain"}'])
def test_arguments_that_are_a_text_go_to_the_template_as_an_object(arguments):
    """OpenAI's exports have them as text; templates would write it in quotes."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    row = {"messages": [*turns("Rain?"), {"role": "assistant", "tool_calls": [call]}], "tools": '[{"name": "look"}]'}
    (_, asked) = read_messages(row, "messages")
    assert asked["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": "rain"}}
    assert read_tools(row) == [{"name": "look"}]


@pytest.mark.parametrize("calls", [7, ["look"], [{}], {"name": "look"}, [{"function": {"name": 1}}]])
def test_calls_that_name_no_function_are_told(calls):
    with pytest.raises(ConversationError, match="turn 2 has tool_calls that name no function"):
        read_messages({"messages": [*turns("Rain?"), {"role": "assistant", "tool_calls": calls}]}, "messages")


ROWS = [
    *(
        {"messages": turns(f"Case {number} of rain", "Go on", f"and {number * 7} more", "sadness")}
        for number in range(4)
    ),
    {"messages": turns("Case 0 of rain", "Go on", "but the sun came", "joy")},
    {"messages": turns("alone", "joy")},
    {"messages": turns("a", "b", "c")},
    {"other": 1},
    {"messages": turns("a", "b " * 20_000)},
]


def test_audit_and_corpus_of_conversations(tmp_path, tiny_model):
    _, kept, rejected = audit(tmp_path, tiny_model, ROWS, corpus=CHAT, conversation="messages", target="messages")
    assert [one["number"] for one in kept] == [1, 2, 3, 4, 5, 6]
    assert kept[0]["cluster"] == kept[4]["cluster"], "they begin with the same turn"
    assert [one["target"] for one in kept[-2:]] == ["joy", "joy"]
    assert [(one["reason"], one["detail"]) for one in rejected] == [
        ("conversation", "the last turn is not the assistant's"),
        ("conversation", "'messages' holds no list of turns"),
        ("too_long", "the turns have 40,000 characters, corpus.max_length 256 has room for 32,768 at most"),
    ]
    out = render(
        tmp_path, tiny_model, kept, CHAT, labels=("joy", "sadness"), target="messages", conversation="messages"
    )
    rows = {row["id"]: row for split in ("train", "validation", "test") for row in read_jsonl(out / f"{split}.jsonl")}
    first, last = rows[kept[0]["id"]], rows[kept[-1]["id"]]
    assert [first["prompt"][start:end].strip()[:5] for start, end in first["spans"]] == ["Go on"]
    assert "spans" not in last
    template = json.loads((out / "template.json").read_text())
    assert extract_input(template, first["prompt"]) == "Case 0 of rain\nGo on\nand 0 more"
    tokenizer = load_tokenizer(tiny_model)
    assert template["separators"] == list_separators(tokenizer)
    asked = read_question({"messages": ROWS[0]["messages"][:-1]}, "messages")
    assert render_question(template["conversation"], asked, None) == kept[0]["values"][TURNS]


def test_the_control_changes_the_last_turn_and_nothing_else(tmp_path):
    values = yaml.safe_load((ROOT / "examples/conversations.yaml").read_text()) | {"task": "classification"}
    config = load_config({**values, "data": {**values["data"], "conversation": "data.turns"}, "evaluate": {}}, [])
    load_config(derive_configuration(config, "results-control", ROOT / "data/conversations.jsonl"), [])
    raw = [
        {"data": {"turns": turns("a", "b", "c", "joy"), "id": 1}},
        {"data": {"turns": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "joy"}]}},
    ]
    read = [{"file": "a", "number": number, "row": row} for number, row in enumerate(raw, start=1)]
    write_jsonl(tmp_path / "rows.jsonl", read)
    kept = [{"file": "a", "number": number, "target": "joy"} for number in (1, 2)]
    rows = add_sources(kept, tmp_path / "rows.jsonl")
    assert [build_raw_row(row, config.data) for row in rows] == raw
    (first, second) = (build_raw_row({**row, "target": "fear"}, config.data) for row in rows)
    assert first == {"data": {"turns": turns("a", "b", "c", "fear"), "id": 1}}
    assert second["data"]["turns"][-1] == {"from": "gpt", "value": "fear"}


def test_rows_that_are_conversations_are_told_as_what_they_are(tmp_path, tiny_phi3):
    with pytest.raises(UserError, match=r"these rows are conversations: add data: \{conversation: messages\}"):
        audit(tmp_path, tiny_phi3, ROWS[:6])
