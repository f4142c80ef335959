"""The configuration: what is accepted, and how a mistake is told."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig
from transformers import TrainingArguments

from lib.config.loader import check_yaml, load_config
from lib.config.training import Finetune
from lib.core.cli import UserError, call_or_exit, fail, format_error
from lib.evaluation.registry import find_metrics
from support.paths import ROOT


def load(text: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    check_yaml(path)
    return load_config(yaml.safe_load(text), [path])


def changed(old: str, new: str) -> str:
    text = (ROOT / "config.yaml").read_text()
    assert old in text
    return text.replace(old, new, 1)


LABELS = "labels: [negative, neutral, positive]"
SHIPPED = [ROOT / "config.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path):
    check_yaml(path)
    load_config(yaml.safe_load(path.read_text()), [path])


def test_shipped_configurations_never_share_an_output_folder():
    folders = [yaml.safe_load(path.read_text()).get("results", "results") for path in SHIPPED]
    assert len(set(folders)) == len(folders)


def test_the_seed_recipe_is_expressible():
    """Every setting of the recipe that slmflow replaces stands in examples/phi3-mini.yaml with its value."""
    config = load_config(yaml.safe_load((ROOT / "examples/phi3-mini.yaml").read_text()), [])
    finetune = config.finetune
    assert (finetune.r, finetune.lora_alpha, finetune.lora_dropout) == (64, 64, 0.1)
    assert finetune.target_modules == ["o_proj", "qkv_proj"]
    assert (finetune.corpus_strategy, finetune.source_max_len, finetune.loss) == ("join", 2048, "all")
    assert (config.seed, finetune.data_seed, finetune.max_steps) == (0, 42, 10)
    assert (finetune.per_device_train_batch_size, finetune.gradient_accumulation_steps) == (1, 4)
    assert (finetune.learning_rate, finetune.adam_beta2, finetune.max_grad_norm) == (1e-4, 0.999, 0.3)
    assert finetune.group_by_length
    assert not finetune.gradient_checkpointing
    assert config.corpus.text_template == "### Text: {phrase}\n### The tone is:\n{tone}"


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    assert load(changed("3.0e-4", "3e-4"), tmp_path).finetune.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("  r: 16", "  lora_r: 16", "  lora_r", "finetune.lora_r is not a known key; it is called finetune.r here"),
        ("  r: 16", "  rr: 16", "  rr", "finetune.rr is not a known key; did you mean r?"),
        ("seed: 0", "seed: 0\nnum_train_epochs: 2", "num_train_epochs", "num_train_epochs is not a known key; it belongs to finetune.num_train_epochs"),
        ("seed: 0", "seed: 0\nepochs: 2", "epochs", "epochs is not a known key; it is called finetune.num_train_epochs here"),
        *(("  r: 16", f"  r: 16\n  {old}: 0.1", f"  {old}", f"finetune.{old} is not a known key; it is called finetune.{new} here") for old, new in {"alpha": "lora_alpha", "dropout": "lora_dropout", "epochs": "num_train_epochs", "warmup_share": "warmup_steps"}.items()),
        ("  r: 16", "  r: 16\n  warmup_steps: 1.5", "  warmup_steps", "finetune: warmup_steps: 1.5 is neither a whole number of steps nor a share below 1"),
        ("seed: 0", "seed: zero", "seed", "seed: input should be a valid integer"),
        ("  r: 16", "  r: -1", "  r:", "finetune.r: input should be greater than or equal to 1"),
        ("  int4: {}", "  Int4: {}", "  Int4", "variants: the name 'Int4' cannot be used; use a-z, 0-9 and - (not first)"),
        ("  int4: {}", "  -int4: {}", "  -int4", "variants: the name '-int4' cannot be used; use a-z, 0-9 and - (not first)"),
        *(("results: results", f"results: {name}", "results", f"results cannot be used (found '{name}'); use letters from A to Z, digits, and the signs . _ / and - (not first)") for name in ("my results", "-out", "./-out", "$(x)")),
        ("  int4: {}", "  int4: {precision: fp16}", "  int4:", "variants.int4: cpu cannot run fp16"),
        ("  int4: {}", "  int4: {blocksize: 32}", "  int4:", "variants.int4.blocksize is not a known key; did you mean block_size"),
        ("algo_config: k_quant", "algo_config: awq", "    algo_config", "variants.int4-k-quant.algo_config: input should be"),
        ("  target: sentiment", "  targets: sentiment", "  targets", "data.targets is not a known key; did you mean target?"),
        ("test: 0.15", "test: 0.95", "split", "split: validation and test together must leave rows"),
        ("{text}", "", "corpus", "corpus: the template names no column"),
        ("text_template: ", "template: chat\n  user: ", "corpus", "corpus: the question holds {sentiment}"),
        ("{text}", "{text!r}", "corpus", "corpus: template: {text!r} has a format or conversion; write {text}, or quote"),
        ("{text}", "{text[0]}", "corpus", "corpus: template: {text[0]} is not a column"),
        ("{text}", "{text", "corpus", "corpus: template"),
        ("    accuracy: 0.70", "    chrf: 0.70", "    chrf", "gate.minimum.chrf: task classification has no metric chrf"),
        ("    accuracy: 0.70", "    accuracy: 70", "    accuracy", "gate.minimum.accuracy: 70 can never be reached, accuracy goes up to 1"),
        ("max_size_mb: 200", "min_quality: 77.5", "  min_quality", "selection.min_quality: 77.5 can never be reached, macro_f1 goes up to 1"),

        ("seed: 0", "seed: -1", "seed", "seed: input should be greater than or equal to 0 (found -1); a seed is a whole number from 0 to 4294967295"),
        ("seed: 0", "seed: 4294967296", "seed", "seed: input should be less than or equal to 4294967295"),
        ("seed: 0", "seed: yes", "seed", "seed: true is not a number (YAML reads yes"),
        ("finetune:", "sweep: {seed: [1, -2]}\nfinetune:", "sweep", "sweep.seed.1: input should be greater than or equal to 0 (found -2); a seed is"),
        ("  r: 16", "  data_seed: -5", "  data_seed", "finetune.data_seed: input should be greater than or equal to 0 (found -5); a seed is"),
        ("  r: 16", "  r: yes", "  r:", "finetune.r: true is not a number"),
        ("  r: 16", "  r: 9999999999", "  r:", "finetune.r: input should be less than or equal to 2147483647"),
        ("learning_rate: 3.0e-4", "learning_rate: on", "  learning_rate", "finetune.learning_rate: true is not a number"),
        ("learning_rate: 3.0e-4", "learning_rate: .inf", "  learning_rate", "finetune.learning_rate: input should be a finite number"),
        ("version: 0.1.2", "version: 0.1", "    version", 'base_model.package.version: YAML reads 0.1 as a number; quote it: "0.1"'),
        ("  target: sentiment", "  target:", "  target", "data.target has no value; give one"),
        (LABELS, "labels: [yes, no]", "  labels", 'data.labels.0: YAML reads yes as true; quote it: "yes"'),
        (LABELS, "labels:\n    - calm\n    - off", "    - off", 'data.labels.1: YAML reads off as false; quote it: "off"'),
        (LABELS, "labels: [calm, null]", "  labels", 'data.labels.1: YAML reads null as nothing; quote it: "null"'),
        (LABELS, "labels: [calm, 0]", "  labels", 'data.labels.1: YAML reads 0 as a number; quote it: "0"'),
        (LABELS, "labels: [1.0, 2.0]", "  labels", 'data.labels.0: YAML reads 1.0 as a number; quote it: "1.0"'),
        (LABELS, "labels: [12:30, b]", "  labels", 'data.labels.0: YAML reads 12:30 as a number; quote it: "12:30"'),
        (LABELS, "labels: [2024-01-01, b]", "  labels", 'data.labels.0: YAML reads 2024-01-01 as a date; quote it'),
        (LABELS, "labels: {calm: [], no: []}", "  labels", 'data.labels: YAML reads no as false; quote it: "no"'),
        (LABELS, "labels: {-4: [], b: []}", "  labels", 'data.labels: YAML reads -4 as a number; quote it: "-4"'),
        (LABELS, "labels: {-4: [0], b: []}", "  labels", 'data.labels: YAML reads -4 as a number; quote it: "-4"'),
        (LABELS, "labels: {a: [0.0], b: []}", "  labels", 'data.labels.a.0: YAML reads 0.0 as a number; quote it: "0.0"'),
        (LABELS, "labels: {a: x, b: []}", "  labels", "data.labels.a: input should be a valid list (found 'x')"),
        (LABELS, "labels: {a: [b], b: []}", "  labels", "data: labels: 'b' is listed twice"),
        (LABELS, "labels: [a, a]", "  labels", "data: labels: 'a' is listed twice"),
        (LABELS, "labels: [a]", "  labels", "data.labels: list should have at least 2 items"),
        (LABELS, "optional_columns: [texts]", "  optional_columns", "data.optional_columns: the template asks for text, not for texts"),
        (LABELS, "optional_columns: [sentiment]", "  optional_columns", "data.optional_columns: the template asks for text, not"),
        (LABELS, "max_rejected: 7", "  max_rejected", "data.max_rejected: input should be less than or equal to 1"),
        ("max_size_mb: 200", "metric: chrf", "  metric", "selection.metric: task classification has no metric chrf"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_the_nearest_name(tmp_path, old, new, line, expected):
    text = changed(old, new)
    number = next(place for place, row in enumerate(text.splitlines(), 1) if row.startswith(line))
    with pytest.raises(UserError) as caught:
        load(text, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/config.yaml:{number}: {expected}"), caught.value


@pytest.mark.parametrize(
    ("written", "meant"), [("./out/", "out"), ("a//b", "a/b"), ("../out", "../out"), ("/out", "/out")]
)
def test_a_results_folder_has_one_spelling(tmp_path, written, meant):
    assert load(changed("results: results", f"results: {written}"), tmp_path).results == meant


def test_a_branch_is_not_a_revision(tmp_path):
    text = (ROOT / "examples/phi3-mini.yaml").read_text().replace("f39ac1d28e925b323eae81227eaba4464caced4e", "main")
    with pytest.raises(UserError, match=r"base_model.hub.revision is not a commit \(found 'main'\)"):
        load(text, tmp_path)


def test_two_sources_or_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="data: give exactly one of files, hub, package"):
        load(changed("  files: [data/raw/tweets.json]", "  unreadable: error"), tmp_path)
    with pytest.raises(UserError, match="base_model: give exactly one of path, hub, package"):
        load(changed("base_model:\n", "base_model:\n  path: x\n"), tmp_path)


def test_a_key_given_twice_is_refused_with_both_lines(tmp_path):
    text = changed("  r: 16", "  r: 16\n  r: 32")
    number = text.splitlines().index("  r: 32") + 1
    with pytest.raises(UserError, match=rf"config.yaml:{number}: r occurs twice \(first in line {number - 1}\)"):
        load(text, tmp_path)


def test_the_error_of_a_command_line_value_does_not_blame_a_file_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text((ROOT / "config.yaml").read_text())
    values = yaml.safe_load(path.read_text())
    values["finetune"]["lerning_rate"] = 1
    with pytest.raises(UserError, match="finetune.lerning_rate is not a known key"):
        load_config(values, [path])


def test_labels_are_listed_or_mapped_to_their_other_spellings(tmp_path):
    assert load(changed(LABELS, "labels: [a, 'no']"), tmp_path).data.labels == ["a", "no"]
    mapped = load(changed(LABELS, "labels: {a: [A, Á], 'no': }"), tmp_path).data.labels
    assert mapped == {"a": ["A", "Á"], "no": []}


def test_a_quoted_column_is_no_other_column(tmp_path):
    """The answer is found in the question under either way of writing it; the target is taken as it stands."""
    text = changed("target: sentiment", "target: 'PK [m]'").replace("{sentiment}", r"{\"PK [m]\"}")
    assert load(text, tmp_path).data.target == "PK [m]"
    with pytest.raises(UserError, match=r'corpus: the question holds \{"PK \[m\]"\}, which is the answer'):
        load(text.replace("text_template: ", "template: chat\n  user: "), tmp_path)


def test_a_long_error_keeps_its_place_and_its_hint():
    with pytest.raises(UserError) as error:
        fail("class 'x' has 1 row; " * 99 + "\nand so on", "mend the data or the configuration", at="data.json", line=7)
    line = format_error(error.value)
    assert len(line) == 500
    assert line.startswith("error: data.json:7: class 'x' has 1 row; class")
    assert line.endswith(" and so on; mend the data or the configuration")
    with pytest.raises(SystemExit, match=re.escape(line)):
        call_or_exit(fail, str(error.value))
    short = "error: data.json: the audit stops here; mend it"
    assert format_error(UserError(short.removeprefix("error: "))) == short


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_every_metric_can_be_gated_and_selected(task, tmp_path):
    base = "config.yaml" if task == "classification" else "examples/faq.yaml"
    for metric in find_metrics(task, "is_selectable"):
        values = yaml.safe_load((ROOT / base).read_text())
        values.update(selection={"metric": metric}, gate={"minimum": {metric: 0}})
        assert load_config(values, []).selection.metric == metric


def test_keys_of_the_fine_tuning_bear_the_names_of_peft_and_transformers():
    """But for those that stand for several of theirs, name what is brought, or are Olive's or slmflow's own."""
    own = {"method", "adapter", "merged", "quant_type", "double_quant", "loraplus_lr_ratio", "class_balance", "loss"}
    own |= {"dtype", "early_stopping_patience", "group_by_length", "corpus_strategy", "source_max_len", "eval_rows"}
    theirs = {field.name for one in (LoraConfig, TrainingArguments) for field in dataclasses.fields(one)}
    assert Finetune.model_fields.keys() - theirs == own


CHATS = {"data": {"files": ["a.jsonl"], "conversation": "messages"}, "corpus": {"max_length": 99}}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"data": CHATS["data"] | {"target": "tone"}}, "data: target: the last turn of conversation: is the target"),
        (
            {"corpus": {"template": "chat", "user": "{a}"}},
            "corpus.user: data.conversation has its own turns; leave it out",
        ),
        ({"corpus": {"text_template": "{a}{b}"}}, "corpus.text_template: data.conversation has its own turns"),
        ({"corpus": {"truncation": "right"}}, "corpus.truncation: a conversation cannot be shortened; use reject"),
        (
            {"data": CHATS["data"] | {"optional_columns": ["a"]}},
            "data.optional_columns: data.conversation has no columns",
        ),
        ({"data": {"files": ["a.jsonl"]}}, "data.target is missing; add it"),
        (
            {"data": {"files": ["a"], "target": "b"}},
            "corpus: give either template: chat (with user:) or text_template:",
        ),
        (
            {"data": {"files": ["a"], "target": "b"}, "corpus": {"turns": "last"}},
            "corpus.turns: belongs to data.conversation",
        ),
        ({"split": {"values": {"test": "x"}}}, "split: values: needs column:"),
        (
            {"split": {"column": "a", "values": {"test": "x", "train": "x"}}},
            "split: values: two splits have the same value",
        ),
        (
            {"data": {"files": {"train": ["a"], "test": ["b"]}, "conversation": "c"}, "split": {"column": "a"}},
            "split.column: the files of data.files are named by split already",
        ),
        ({"data": {"files": {"train": ["a"], "test": ["a"]}, "conversation": "c"}}, "data: files: a is listed twice"),
        ({"data": {"files": {"dev": ["a"]}, "conversation": "c"}}, "data.files: the name 'dev' cannot be used"),
        ({"data": CHATS["data"] | {"answers": "each"}}, "data.answers: belongs to task generation"),
    ],
)
def test_what_does_not_go_with_conversations_and_given_splits_is_told(tmp_path, changes, what):
    values = yaml.safe_load((ROOT / "config.yaml").read_text()) | CHATS | changes
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as caught:
        load_config(values, [tmp_path / "config.yaml"])
    assert what in str(caught.value)


def test_conversations_and_given_splits_are_valid():
    values = yaml.safe_load((ROOT / "config.yaml").read_text()) | CHATS
    config = load_config(values, [])
    assert (config.data.target, config.leakage) == ("messages", "error")
    config = load_config(values | {"data": {"files": {"train": ["a"], "test": ["b", "c"]}, "conversation": "m"}}, [])
    assert (config.data.every_file, config.data.splits, config.leakage) == (
        ["a", "b", "c"],
        ["train", "test", "test"],
        "report",
    )
