"""The importer of Olive's configurations: single keys, both eras, bad files, its command."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from lib.core.cli import UserError
from lib.data.templates import parse_segments
from lib.olive.convert import convert_document
from lib.olive.document import collect_blocks, read_document
from lib.olive.keys import KEYS
from lib.olive.reference import replace_tables
from lib.olive.templates import convert_template
from support.paths import ROOT, SCRIPTS

PASS: dict[str, Any] = {"type": "LoRA", "r": 8, "train_data_config": "rows"}
ROWS = {"name": "rows", "type": "HuggingfaceContainer", "load_dataset_config": {"data_name": "json", "data_files": "rows.json"},
        "pre_process_data_config": {"text_template": "{text} -> {label}"}}  # fmt: skip


def build(
    training: dict[str, Any] | None = None, rows: dict[str, Any] | None = None, **sections: Any
) -> dict[str, Any]:
    return {"passes": {"f": PASS | (training or {})}, "data_configs": [ROWS | (rows or {})], **sections}


def convert(values: Any, **options: Any):
    return convert_document(collect_blocks(values, "olive.json"), "olive.json", **options)


def test_defaults_are_those_of_the_era():
    new = convert(build({"training_args": {}})).config
    old = convert(build({"eval_dataset_size": 0.2, "training_args": {"num_train_epochs": 2}})).config
    assert (new.seed, new.finetune.lora_alpha, new.finetune.lora_dropout) == (42, 16, 0.05)
    assert (new.finetune.num_train_epochs, new.finetune.max_steps, new.finetune.learning_rate) == (3, None, 2e-4)
    assert (new.finetune.per_device_train_batch_size, new.finetune.gradient_accumulation_steps) == (8, 1)
    assert (old.finetune.max_steps, old.finetune.gradient_accumulation_steps, old.finetune.lora_dropout) == (
        10000,
        16,
        0.0,
    )
    assert (old.finetune.per_device_train_batch_size, old.finetune.group_by_length) == (1, True)


TRAINING = [
    ({"max_grad_norm": 0}, {"max_grad_norm": 1e9}),
    ({"lr_scheduler_type": "cosine_with_restarts"}, {"lr_scheduler_type": "cosine"}),
    ({"lr_scheduler_type": "linear", "warmup_ratio": 0.1}, {"lr_scheduler_type": "linear", "warmup_steps": 0.1}),
    ({"lr_scheduler_type": "linear", "warmup_steps": 25}, {"warmup_steps": 25}),
    ({"warmup_ratio": 0.1}, {"lr_scheduler_type": "constant", "warmup_steps": 0}),
    ({"max_steps": -1, "num_train_epochs": 2}, {"max_steps": None, "num_train_epochs": 2}),
    ({"max_steps": 200, "eval_steps": 0.25}, {"eval_steps": 50}),
    ({"max_steps": 20, "eval_steps": 30}, {"eval_steps": 20}),
    ({"eval_strategy": "steps", "logging_steps": 7}, {"eval_steps": 7}),
    ({"load_best_model_at_end": True}, {"metric_for_best_model": "loss"}),
    ({"metric_for_best_model": "eval_loss"}, {"metric_for_best_model": "loss"}),
    ({"learning_rate": 1e-05}, {"learning_rate": 1e-5}),
    ({"extra_args": {"weight_decay": 0.01}}, {"weight_decay": 0.01}),
]


@pytest.mark.parametrize(("arguments", "expected"), TRAINING, ids=str)
def test_training_arguments_keep_their_meaning(arguments, expected):
    finetune = convert(build({"training_args": arguments})).config.finetune
    assert {name: getattr(finetune, name) for name in expected} == expected


PASSES = [
    ({"type": "DoRA"}, {"method": "dora", "r": 8}),
    (
        {"type": "qlora", "quant_type": "fp4", "double_quant": True},
        {"method": "qlora", "quant_type": "fp4", "double_quant": True},
    ),
    ({"type": "QLoRA", "target_modules": ["q_proj"]}, {"target_modules": "all-linear", "double_quant": False}),
    ({"type": "LoHa"}, {"method": "lora"}),
    ({"target_modules": "q_proj, v_proj"}, {"target_modules": ["q_proj", "v_proj"]}),
    ({"torch_dtype": "float16"}, {"dtype": "auto"}),
    ({"torch_dtype": "bfloat16", "compute_dtype": "float32"}, {"dtype": "float32"}),
    ({"r": 10**30}, {"r": 64}),
    ({"alpha": "much"}, {"lora_alpha": 16}),
    ({"alpha": 32}, {"lora_alpha": 32}),
]


@pytest.mark.parametrize(("training", "expected"), PASSES, ids=str)
def test_settings_of_a_pass_keep_their_meaning(training, expected):
    finetune = convert(build(training)).config.finetune
    assert {name: getattr(finetune, name) for name in expected} == expected


SHAPES = [
    ({"text_cols": ["q", "a"]}, {"corpus": {"text_template": "{q} {a}"}, "data": {"target": "a"}}),
    ({"text_template": "{a}: {b}", "strategy": "line-by-line", "max_seq_len": 96},
     {"corpus": {"max_length": 96, "truncation": "right"}, "finetune": {"corpus_strategy": "rows", "loss": "all"}}),
    ({"text_template": "{a}: {b}", "corpus_strategy": "join-random", "source_max_len": 64},
     {"finetune": {"corpus_strategy": "join", "source_max_len": 64}}),
    ({"text_template": "{a}: {b}", "source_max_len": 64}, {"finetune": {"corpus_strategy": "rows"}}),
    ({"text_template": "{a}: {b}"}, {"finetune": {"corpus_strategy": "join", "source_max_len": 1024}}),
    ({"chat_template": True}, {"data": {"conversation": "messages"}, "task": "generation", "finetune": {"loss": "all"}}),
    ({"chat_template": True, "message_col": "chat", "strategy": "line-by-line"},
     {"data": {"conversation": "chat"}, "corpus": {"truncation": "reject"}}),
    ({"dataset_type": "pair", "pair_format": "custom", "input_col": "q", "output_template": "A: {a}",
      "source_max_len": 100, "target_max_len": 28},
     {"corpus": {"text_template": "{q}A: {a}", "max_length": 128}, "finetune": {"loss": "completion", "corpus_strategy": "rows"}}),
    ({"dataset_type": "pair", "pair_format": "alpaca"},
     {"data": {"target": "output", "optional_columns": ["input"]}, "finetune": {"loss": "completion"}}),
    ({"dataset_type": "pair", "ignore_source_in_labels": False}, {"data": {"target": "output"}, "finetune": {"loss": "all"}}),
    ({"text_template": "{text}"}, {"data": {"target": "answer"}}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "expected"), SHAPES, ids=lambda value: str(value)[:60])
def test_the_shape_of_the_rows_keeps_its_meaning(shape, expected):
    config = convert(build(rows={"pre_process_data_config": shape})).config.model_dump()
    for section, values in expected.items():
        found = config[section]
        assert ({key: found[key] for key in values} if isinstance(values, dict) else found) == values


SOURCES = [
    ({"data_name": "json", "data_files": ["a.json", "b.json"]}, {"files": ["a.json", "b.json"]}),
    ({"data_name": "csv", "data_files": {"train": "a.csv", "test": "b.csv"}, "split": "train"}, {"files": ["a.csv"]}),
    ({"data_name": "owner/name", "subset": "en", "split": "test"}, {"hub": {"id": "owner/name", "revision": "0" * 40, "split": "test", "config": "en"}}),
    ({"data_name": "json", "data_files": "azureml://datastores/d/paths/a/b.jsonl"}, {"source": "azureml://datastores/d/paths/a/b.jsonl"}),
    ({"data_name": "json", "data_files": {"type": "azureml_datastore", "datastore_name": "d", "relative_path": "a.json"}},
     {"source": "azureml://datastores/d/paths/a.json"}),
    ({"data_name": "json", "data_files": {"type": "local_file", "config": {"path": "a.json"}}}, {"files": ["a.json"]}),
    ({"data_name": "json", "data_files": "https://host/a.json"}, {"files": ["data/mine.json"]}),
]  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), SOURCES, ids=lambda value: str(value)[:60])
def test_the_place_of_the_rows_is_kept(source, expected):
    data = convert(build(rows={"load_dataset_config": source})).config.data.model_dump()
    assert {key: data[key] for key in expected} == expected


def test_other_rows_for_validation_become_its_files():
    other = ROWS | {"name": "others", "load_dataset_config": {"data_name": "json", "data_files": "others.json"}}
    values = build({"eval_data_config": "others"})
    values["data_configs"].append(other)
    assert convert(values).config.data.files == {"train": ["rows.json"], "validation": ["others.json"]}


MODELS = [
    ({"model_path": "owner/name-1.5b"}, {"hub": {"id": "owner/name-1.5b", "revision": "0" * 40}, "parameters": 1_500_000_000}),
    ({"model_path": "owner/name", "load_kwargs": {"revision": "a" * 40}}, {"hub": {"id": "owner/name", "revision": "a" * 40}}),
    ({"model_path": "a/b/c"}, {"path": "a/b/c"}),
    ({"model_path": "folder"}, {"path": "folder"}),
    ({"model_path": "https://huggingface.co/owner/name"}, {"hub": {"id": "owner/name", "revision": "0" * 40}}),
    ({"model_path": "azureml:mine:3"}, {"source": "azureml://models/mine/versions/3"}),
    ({"model_path": {"type": "azureml_model", "config": {"name": "mine", "version": 3}}}, {"source": "azureml://models/mine/versions/3"}),
    ({"model_path": {"type": "azureml_registry_model", "name": "m", "registry_name": "r", "version": "latest"}},
     {"source": "azureml://registries/azureml/models/NAME/versions/1"}),
    ({"model_path": {"type": "folder", "path": "models/a"}}, {"path": "models/a"}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "expected"), MODELS, ids=lambda value: str(value)[:60])
def test_the_base_model_is_kept(model, expected):
    values = build(input_model={"type": "HfModel", **model})
    base = convert(values, is_folder=lambda name: name == "folder").config.base_model.model_dump()
    assert {key: base[key] for key in expected} == expected


BUILDERS = [
    ({"precision": "int4", "int4_block_size": 64, "int4_algo_config": "k_quant_mixed"},
     {"int4": {"precision": "int4", "block_size": 64, "algo_config": "k_quant", "matmul_mixed_precision": "last_matmul:int8,mixed_layers:int8"}}),
    ({"precision": "int4", "extra_options": {"int4_is_symmetric": False, "int4_tied_embeddings": None}}, {"int4": {"precision": "int4", "is_symmetric": False}}),
    ({"precision": "fp32"}, {"fp32": {"precision": "fp32"}}),
    ({"precision": "fp16"}, {"int4": {"precision": "int4"}}),  # nothing runs it on a CPU
    ({"precision": "int4", "int4_accuracy_level": 9}, {"int4": {"precision": "int4"}}),
    ({"precision": "fp16", "metadata_only": True}, {"int4": {"precision": "int4"}}),
]  # fmt: skip


@pytest.mark.parametrize(("builder", "expected"), BUILDERS, ids=lambda value: str(value)[:60])
def test_a_build_keeps_its_options(builder, expected):
    values = build()
    values["passes"]["builder"] = {"type": "ModelBuilder", **builder}
    assert yaml.safe_load(convert(values).text)["variants"] == expected


def test_a_model_for_a_gpu_is_built_beside_one_that_can_be_scored():
    accelerators = [{"device": "gpu", "execution_providers": ["CUDAExecutionProvider"]}]
    values = build(systems={"s": {"type": "LocalSystem", "accelerators": accelerators}}, target="s")
    values["passes"]["builder"] = {"type": "ModelBuilder", "precision": "fp16"}
    found = convert(values)
    assert {name: one.scored for name, one in found.config.variants.items()} == {"fp16-cuda": False, "int4": True}
    assert "profiles/gpu" in found.text


def test_a_pass_is_chosen_by_its_name():
    values = build()
    values["passes"] |= {"g": {"type": "QLoRA", "r": 4}}
    assert convert(values).config.finetune.r == 8
    chosen = convert(values, pass_name="g")
    assert (chosen.config.finetune.method, chosen.config.finetune.r) == ("qlora", 4)
    assert "- passes.f: (one training in a run" in chosen.text
    with pytest.raises(UserError, match="olive.json: no training pass 'h'; there are: f, g"):
        convert(values, pass_name="h")


def test_an_adapter_that_is_there_already_is_taken():
    found = convert({"input_model": {"type": "HfModel", "model_path": "owner/name", "adapter_path": "a/b"}})
    assert (found.config.finetune.adapter, found.has_training) == ("a/b", True)


TEMPLATES = [
    ("### {Best Answer}", "### {Best Answer}", ["Best Answer"], 0),
    ("{a[b]} {{x}} {c!r:>9}", "{a.b} {{x}} {c}", ["a.b", "c"], 1),
    ('{he said "x"}', '{"he said \\"x\\""}', ['he said "x"'], 0),
    ("{?a} {/b}", '{"?a"} {"/b"}', ["?a", "/b"], 0),
    ("{} {0} {a}", "  {a}", ["a"], 2),
    ("a } b", "a }} b", [], 1),
]


@pytest.mark.parametrize(("text", "expected", "columns", "faults"), TEMPLATES)
def test_a_template_of_python_becomes_one_of_slmflow(text, expected, columns, faults):
    found = convert_template(text)
    assert (found.text, found.columns, len(found.faults)) == (expected, columns, faults)
    assert [segment["column"] for segment in parse_segments(found.text) if "column" in segment] == columns


BAD = {
    "{\n 'a': 1}": ":2: not JSON: Expecting property name",
    "input_model:\n  type: HfModel\n": ":1: not JSON: Expecting value; if it is YAML, name the file .yaml",
    '{"passes": {}, "passes": {}}': ": not JSON: the key 'passes' is listed twice",
    '"lora": {"type": "LoRA",}': ":1: not JSON",
    "[" * 100_000: "not JSON",
    '{"a": ' * 60 + "1" + "}" * 60: ": cannot be read: it is nested deeper than 40 levels",
    '{"passes": ' + "9" * 5000 + "}": ": not JSON: a number with too many digits",
    '{"passes": NaN}': ": not JSON: NaN is not a number",
    "{}": ": not an Olive configuration: it holds no keys",
    "[1]": ": not an Olive configuration",
    "3": ": not an Olive configuration",
    '{"name": "x"}': ": not an Olive configuration: 'name' is none of its keys",
    '{"base_model": {}, "corpus": {}}': ": this is slmflow's own configuration",
    '{"type": "LoRA", "r": 8, "config": {"r": 9}}': ": config.r is given a second time",
    "": "not JSON",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_a_file_that_is_none_is_one_line(text, tmp_path):
    path = tmp_path / "olive.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_document(path)
    assert BAD[text] in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_files_that_are_none_are_one_line(tmp_path):
    for name, content in (("latin.json", b'{"a": "\xe9"}'), ("wide.json", '{"a": 1}'.encode("utf-16"))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not UTF-8 text; save it as UTF-8"):
            read_document(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        read_document(tmp_path / "none.json")
    with pytest.raises(UserError, match="not a file"):
        read_document(tmp_path)


def test_yaml_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "olive.yaml").write_text(yaml.safe_dump(build()))
    (tmp_path / "olive.json").write_text("\ufeff" + json.dumps(build()))
    texts = [convert_document(read_document(tmp_path / name), "x").text for name in ("olive.yaml", "olive.json")]
    assert texts[0] == texts[1] == convert_document(collect_blocks(build(), "x"), "x").text


@pytest.mark.parametrize("kind", ["OpenVINOConversion", "GptqQuantizer", "OnnxConversion", "SomethingNew"])
def test_a_pass_that_is_not_here_is_told_and_the_rest_is_carried_over(kind):
    values = build()
    values["passes"]["other"] = {"type": kind, "config": {"a": 1}}
    found = convert(values)
    assert f'- passes.other: "{kind}" (' in found.text
    assert found.config.finetune.r == 8


def run_importer(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / "import_olive.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_prints_a_configuration_and_says_when_it_trains_nothing(tmp_path):
    path = tmp_path / "olive.json"
    path.write_text(json.dumps(build()))
    done = run_importer(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["finetune"]["r"] == 8
    path.write_text(json.dumps({"data_configs": [ROWS]}))
    done = run_importer(path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}: it has no training pass")
    assert done.stderr.count("\n") == 1
    assert yaml.safe_load(done.stdout)["data"]["files"] == ["rows.json"]


def test_every_key_that_the_importer_knows_is_on_the_page():
    page = (ROOT / "docs/olive.md").read_text()
    assert replace_tables(page) == page
    missing = [(kind, key) for kind, keys in KEYS.items() for key in keys if f"`{key}`" not in page]
    assert missing == []
    assert replace_tables("a\n<!-- Made") != page


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    recipe = ROOT / "tests/olive/recipes/open_llama_lora.json"
    command = [sys.executable, str(ROOT / "scripts/import_olive.py"), str(recipe)]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
