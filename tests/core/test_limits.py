"""Foreign code-like data: whatever it does, a child ends within its limits, and the parent says so in one line."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.core import limits
from lib.core.cli import UserError
from lib.core.limits import Limits, run_limited
from lib.data.chat_templates import render_conversations
from lib.data.template_inversion import extract_answer, extract_input
from lib.data.tokenizer import load_tokenizer
from lib.data.tokenizer_trial import check_tokenizer_file
from lib.data.value_limits import batch_by_size
from lib.models.adapter_trial import check_fields, try_patterns
from support import hostile_calls
from support.changed_tokenizers import changed_tokenizer, replace
from support.paths import ROOT

FEW = Limits(seconds=1, megabytes=100)
ENOUGH = Limits(seconds=60, megabytes=500)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")


def said(function, *arguments, limits=ENOUGH):
    """The line that a call in a child ends with."""
    with pytest.raises(UserError) as error:
        run_limited(function, *arguments, limits=limits, what="its template", hint="choose another", at="model")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_child_gives_back_what_json_can_carry():
    values = [None, True, 1.5, "ü\ud800\u2028 🙂", {"a": [1, "\x00"]}]
    assert run_limited(hostile_calls.give_back, *values, limits=ENOUGH, what="it") == values


def test_what_libraries_print_is_no_reply():
    assert run_limited(hostile_calls.print_much, limits=ENOUGH, what="it") == 668


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (hostile_calls.sleep_in_native_code, "model: its template needs more than 1 s; choose another"),
        pytest.param(
            hostile_calls.take_memory,
            "model: its template needs more than 100 MB of memory; choose another",
            marks=LINUX,
        ),
        (hostile_calls.abort, "its template crashes (SIGABRT), or needs more than 100 MB of memory"),
        (hostile_calls.panic, "its template fails: PanicException: index out of"),
        (hostile_calls.exhaust_recursion, "its template fails: RecursionError"),
        (hostile_calls.give_no_json, "its template fails: TypeError"),
        (hostile_calls.refuse, "here: no system role; leave it out"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_however_a_child_ends_it_is_one_line(call, expected):
    arguments = [1000] if call is hostile_calls.take_memory else []
    assert expected in said(call, *arguments, limits=FEW)


def test_where_no_fork_is_safe_each_call_has_a_server(monkeypatch):
    monkeypatch.setattr(limits, "_servers", {})
    monkeypatch.setattr(limits, "_SERVES_ONCE", True)
    for number in range(2):
        assert run_limited(hostile_calls.give_back, "alone", number, limits=ENOUGH, what="it") == ["alone", number]
    assert "needs more than 1 s" in said(hostile_calls.sleep_in_native_code, limits=FEW)
    assert "crashes (SIGABRT)" in said(hostile_calls.abort, limits=ENOUGH)


def test_a_server_that_is_gone_is_started_again():
    assert run_limited(hostile_calls.give_back, "first", limits=ENOUGH, what="it") == ["first"]
    for server in limits._servers.values():
        server.stdin.close()  # as when it has been idle for long: it ends with 0
        server.wait()
        reading, writing = os.pipe()
        os.close(reading)
        server.stdin = os.fdopen(writing, "wb")
    assert run_limited(hostile_calls.give_back, "second", limits=ENOUGH, what="it") == ["second"]
    for server in limits._servers.values():
        server.kill()
    assert "crashes (SIGKILL)" in said(hostile_calls.give_back, "third")
    assert run_limited(hostile_calls.give_back, "fourth", limits=ENOUGH, what="it") == ["fourth"]


def test_a_reply_of_any_length_is_not_read():
    assert "makes more than 64 MB" in said(hostile_calls.make_text, 65)


def test_the_same_call_needs_no_second_child(monkeypatch):
    assert run_limited(hostile_calls.give_back, "once", limits=ENOUGH, what="it") == ["once"]
    monkeypatch.setattr(limits, "_call_child", lambda *_: pytest.fail("a second child"))
    assert run_limited(hostile_calls.give_back, "once", limits=ENOUGH, what="it") == ["once"]


def test_a_call_that_failed_is_made_again(tmp_path):
    assert "needs more than" in said(hostile_calls.take_memory, 200, limits=FEW)
    assert run_limited(hostile_calls.take_memory, 200, limits=ENOUGH, what="it") == 200 << 20


@LINUX
def test_the_parent_keeps_its_own_limits():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    run_limited(hostile_calls.give_back, limits=FEW, what="it")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_nothing_is_imported_from_the_working_folder(tmp_path, monkeypatch):
    for name in ("json.py", "sitecustomize.py", "lib.py", "ctypes.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert run_limited(hostile_calls.give_back, "cwd", limits=ENOUGH, what="it") == ["cwd"]


@LINUX
def test_a_child_dies_with_its_parent(tmp_path):
    code = (
        "import sys; from support import hostile_calls; from lib.core.limits import Limits, run_limited;"
        "run_limited(hostile_calls.tell_process_id, sys.argv[1], limits=Limits(600, 100), what='it')"
    )
    path = os.pathsep.join([str(ROOT / "scripts"), str(ROOT / "tests")])
    told = tmp_path / "child"
    parent = subprocess.Popen([sys.executable, "-c", code, told], env={**os.environ, "PYTHONPATH": path})
    try:
        assert waited_for(told.exists)
        child = int(told.read_text())
        assert Path(f"/proc/{child}").exists()
    finally:
        parent.kill()
        parent.wait()
    assert waited_for(lambda: has_ended(child))


def waited_for(condition):
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def has_ended(process):
    """Whether it is gone, or dead and waits for init to take note."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


TEMPLATES = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "needs more than 1 s",
    "{{ 2 ** (2 ** 40) }}": "needs more than|MemoryError|OverflowError",
    "{{ 'a' * 10 ** 10 }}": "needs more than 100 MB",
    "{{ 'x'.center(999999999) }}": "needs more than 100 MB",
    "{{ '%999999999d' % 1 }}": "needs more than 100 MB",
    "{{ '{:999999999}'.format(1) }}": "needs more than 100 MB",
    "{{ lipsum(n=99999999) }}": "needs more than",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "{{ messages[0].content | int / none }}": "TypeError",
    "{{ '%d' % 'a' }}": "TypeError",
    "{{ messages['a'] + 1 }}": "UndefinedError|refuses",
    "{{ ''.__class__.__mro__ }}": "refuses the conversation",
    "{% if %}": "refuses the conversation",
    "{{ " + "(" * 10_000 + " }}": "RecursionError|refuses|crashes|MemoryError",
}


@pytest.mark.parametrize(("source", "expected"), TEMPLATES.items(), ids=range(len(TEMPLATES)))
def test_a_chat_template_neither_hangs_nor_eats_the_machine(source, expected):
    with pytest.raises(UserError, match=expected) as error:
        render_conversations(source, [[{"role": "user", "content": "x"}]], {}, FEW)
    assert "chat template" in str(error.value)


def test_many_long_conversations_are_rendered_in_order():
    conversations = [[{"role": "user", "content": f"{number}" * 600_000}] for number in range(9)]
    rendered = render_conversations("{{ messages[0].content }}{{ add_generation_prompt }}", conversations, {})
    assert rendered == [f"{str(number) * 600_000}True" for number in range(9)]


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
TOKENIZERS = {
    "doubles 45 times": (
        {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 45}},
        "needs more than|crashes",
    ),
    "multiplies a little": ({"normalizer": replace("a", "a" * 10_000)}, "tokens of a text of|needs more than"),
    "prepends 10 MB": ({"normalizer": {"type": "Prepend", "prepend": "ab " * (3 << 20)}}, "needs more than|tokens of"),
    "nested stars": ({"pre_tokenizer": split("((a*)*)*((a*)*)*$")}, "PanicException|fails|needs more than"),
    "doubles what it decodes": (
        {"decoder": {"type": "Sequence", "decoders": [BYTE_LEVEL, *[replace("a", "aa")] * 45]}},
        "needs more than|crashes",
    ),
    "the largest id": ({"model": {"vocab": {"a": 2**32 - 1}, "merges": []}}, "has a token with the id 4294967295"),
    "no tokens": ({"model": {"vocab": {}, "merges": []}, "added_tokens": []}, "has no tokens|fails"),
    "no model": ({"model": {"type": "BERT"}}, "cannot be read"),
    "a merge of nothing": ({"model": {"merges": [["no", "such"]]}}, "cannot be read|PanicException"),
}


@pytest.mark.parametrize(("parts", "expected"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_neither_hangs_nor_eats_the_machine(tiny_llama, tmp_path, parts, expected):
    folder = changed_tokenizer(tiny_llama, tmp_path, **parts)
    with pytest.raises(UserError, match=expected) as error:
        check_tokenizer_file(folder / "tokenizer.json", folder, limits=FEW)
    assert str(error.value).startswith(f"{folder}: its tokenizer (tokenizer.json) ")


def test_no_tokenizer_is_opened_that_a_child_has_not_read(tiny_llama, tmp_path):
    """`load_tokenizer` is the one way to a tokenizer: the panic must not come up in this process."""
    with pytest.raises(UserError, match="its tokenizer"):
        load_tokenizer(changed_tokenizer(tiny_llama, tmp_path, pre_tokenizer=split("((a*)*)*((a*)*)*$")))


def test_a_tokenizer_must_read_the_texts_at_hand(tiny_llama, tmp_path):
    """A pattern that takes its time with one text alone."""
    folder = changed_tokenizer(tiny_llama, tmp_path, normalizer=replace("Zyzzyva", "z" * 100_000))
    assert load_tokenizer(folder, ["a tame text"]).encode("tame")
    with pytest.raises(UserError, match="tokens of a text of"):
        load_tokenizer(folder, ["a tame text", "Zyzzyva"])


def test_a_tokenizer_of_another_time_is_read_again(tiny_llama, tmp_path):
    folder = changed_tokenizer(tiny_llama, tmp_path)
    load_tokenizer(folder)
    changed_tokenizer(tiny_llama, tmp_path, normalizer=replace("a", "a" * 10_000))
    with pytest.raises(UserError, match="its tokenizer"):
        load_tokenizer(folder)


MODULES = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(30) for name in "qkvo"]
ADAPTERS = [
    ({"target_modules": "((([a-z_.0-9]*)*)*)*!"}, "needs more than 1 s"),
    ({"exclude_modules": "(.*)*(.*)*(.*)*(.*)*(.*)*!"}, "needs more than 1 s"),
    ({"layers_pattern": ["layers", "(([a-z_.0-9])*)*!"]}, "needs more than 1 s"),
    ({"target_modules": "(" * 3 + "a"}, "is none ('(((a': missing ), unterminated subpattern at position 2)"),
    ({"target_modules": "(" * 5000 + ")" * 5000}, "RecursionError|crashes|needs more than"),
    ({"layers_pattern": "(?P<idx>a)"}, "redefinition of group name 'idx'"),
]


@pytest.mark.parametrize(("config", "expected"), ADAPTERS, ids=range(len(ADAPTERS)))
def test_a_regular_expression_of_an_adapter_does_not_hang(config, expected):
    with pytest.raises(UserError) as error:
        try_patterns(config, MODULES, Path("adapter"), FEW)
    assert str(error.value).startswith("adapter: a regular expression in its adapter_config.json ")
    assert expected in str(error.value) or re.search(expected, str(error.value))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": r".*\.(q|v)_proj", "exclude_modules": None, "layers_pattern": "layers"},
        {"target_modules": ["q"]},
    ],
    ids=str,
)
def test_a_real_expression_of_an_adapter_passes(config):
    try_patterns(config, MODULES, Path("adapter"))


FIELDS = {
    "target_modules": [[["q_proj"]], [1], {"q_proj": 1}, 7],
    "exclude_modules": [[None], True],
    "layers_pattern": [3, [3]],
    "layers_to_transform": ["1", [True], [1.5], {}],
    "lora_alpha": [float("nan"), float("inf"), 10**400, 1e30, True, "8", None],
    "lora_dropout": ["0", 2, float("nan")],
    "use_rslora": [1, "false"],
    "use_dora": [[]],
    "inference_mode": ["no"],
    "base_model_name_or_path": [{}],
    "revision": [1],
    "runtime_config": ["x"],
    "auto_mapping": [[1]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FIELDS for value in FIELDS[name]])
def test_a_field_of_an_adapter_that_peft_does_not_write_so_is_refused(name, value):
    with pytest.raises(UserError, match=f"adapter: its {name} is .*; save it again with peft"):
        check_fields({name: value}, Path("adapter"))


@pytest.mark.parametrize("number", [signal.SIGABRT, 64])
def test_signals_have_names(number):
    assert limits.describe_signal(number) in ("SIGABRT", "SIGRTMAX")


# What else a stranger's file can make slow, without a child


@pytest.mark.parametrize("between", ["", "a", " "])
def test_a_prompt_of_many_columns_that_does_not_fit_is_told_at_once(between):
    """As a regular expression it takes for ever: there are 2000^30 ways to divide this prompt."""
    segments = [{"column": "x"}, {"text": between}] * 30
    with pytest.raises(UserError, match="does not follow the template"):
        extract_input({"prompt": [*segments, {"text": "!"}]}, "a " * 1000)


def test_a_template_that_ends_with_a_book_is_searched_as_far_as_the_answer_goes():
    template = {"prompt": [], "completion": [{"column": "y"}, {"text": " because " + "x " * 500_000}, {"text": "</s>"}]}
    assert extract_answer(template, "joy because x x") == "joy"


@pytest.mark.parametrize(
    ("length", "content"),
    [(1 << 62, b"{}"), (2, b"[]"), (8, b'{"a":{}}'), (8, b'{"a":[]}'), (6, b"{'a':1"), (0, b""), (99, b"[" * 99)],
)
def test_the_header_of_pulled_weights_is_read_within_bounds(tmp_path, length, content):
    """Of weights that are there already only headers are read, without the library's checks."""
    from lib.models.safetensors_streaming import locate_weights

    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + content)
    with pytest.raises(UserError, match="not a safetensors file"):
        locate_weights(tmp_path)


# Who runs foreign programs: the pattern, and the files where it may stand, each behind a child or with what was made
# here. A new one comes through the door that is there, or through one of its own.
DOORS = {
    r"Tokenizer\.from_file": {
        "lib/data/tokenizer.py",  # behind check_tokenizer_file
        "lib/models/import_checkpoint.py",  # the same
        "lib/data/tokenizer_trial.py",  # the child
    },
    r"AutoTokenizer\b|PreTrainedTokenizerFast\.|GGUFReader\(": {
        "lib/models/import_checkpoint.py",  # behind try_model
        "lib/models/import_gguf.py",  # the same
        "lib/models/model_trial.py",  # the child
        "lib/onnx/auto_round.py",  # behind load_tokenizer of the same folder
    },
    r"og\.Tokenizer\(": {"check_tokenizer.py"},  # a child of its own
    r"SandboxedEnvironment|\.from_string\(|apply_chat_template\(": {
        "lib/data/chat_templates.py",
        "lib/data/templates.py",
        "check_tokenizer.py",  # of the template that slmflow itself writes, in a child of its own
    },
    r"get_peft_model\(": {
        "lib/models/safetensors_streaming.py",
        "lib/models/loading.py",
        "lib/training/adapter.py",
        "lib/training/trainer.py",
    },
}


@pytest.mark.parametrize("pattern", DOORS)
def test_foreign_programs_run_behind_these_doors_alone(pattern):
    scripts = ROOT / "scripts"
    found = {
        str(path.relative_to(scripts))
        for path in scripts.rglob("*.py")
        if any(re.search(pattern, line.partition("#")[0]) for line in path.read_text().splitlines())
    }
    assert found <= DOORS[pattern]


def test_a_batch_ends_at_a_thousand_rows_or_half_a_million_characters():
    batches = batch_by_size([200_000] * 7 + [1] * 2500, lambda size: size)
    assert [len(batch) for batch in batches] == [3, 3, 1000, 1000, 501]
