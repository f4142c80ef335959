"""Packaged models from strangers: whatever the folder holds, no code of it runs, and one line says what is wrong."""

import argparse
import ast
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from check_tokenizer import write_empty_model
from onnx import TensorProto, helper

from lib.core.cli import UserError, format_error
from lib.evaluation.onnx_scorer import Scorer
from lib.onnx.packaged import load_packaged_tokenizer, read_genai_config, read_packaged_template
from lib.onnx.runtime import load_onnx, open_onnx
from support.onnx_samples import write_corpus
from support.paths import ROOT
from support.tiny_models import CHATML, train_tokenizer

# What the builder of onnxruntime-genai 0.18.0 writes, with every key that slmflow's options and models lead to.
BUILT: dict[str, Any] = {
    "model": {
        "bos_token_id": 1,
        "context_length": 512,
        "decoder": {
            "session_options": {
                "log_id": "onnxruntime-genai",
                "provider_options": [{"webgpu": {"enableGraphCapture": "0", "validationMode": "basic"}}],
                "ep.cuda.fpa_intb_gemm": "1",
            },
            "filename": "model.onnx",
            "head_size": 16,
            "hidden_size": 64,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
                "past_conv_names": "past.%d.conv",
            },
            "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "p.%d"},
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "sliding_window": {"window_size": 511, "slide_inputs": False, "layers": [0, 1], "cache_slack": 0},
            "layer_types": ["conv", "full_attention"],
            "conv_cache_size": 2,
        },
        "eos_token_id": [2, 3],
        "pad_token_id": 2,
        "type": "phi3",
        "vocab_size": 1000,
    },
    "search": {"do_sample": False, "max_length": 511, "num_beams": 1, "temperature": 1.0, "top_k": 1, "top_p": 1.0},
}
DECODER = ("model", "decoder")
SESSION = (*DECODER, "session_options")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory) -> Path:
    """A folder with all that a packaged model has; its graph is small."""
    base = tmp_path_factory.mktemp("base")
    train_tokenizer(["<|im_end|>", "<|im_start|>"]).save(str(base / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "config.json").write_text('{"eos_token_id": 0}')
    folder = write_empty_model(str(tmp_path_factory.mktemp("packaged")), base)
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"), base)
    shutil.copyfile(corpus / "template.json", folder / "template.json")
    return folder


@pytest.fixture
def model(packaged, tmp_path) -> Path:
    return shutil.copytree(packaged, tmp_path / "model")


def ask(folder: Path) -> None:
    """Ask a packaged model as predict.py does."""
    import predict

    predict.main(argparse.Namespace(model=folder, text=["a text"], file=None, json=False, threads=1))


def refusal(folder: Path, check: Callable[[Path], Any] = ask) -> str:
    """Return the line that a folder is refused with; any other exception than `UserError` fails the test."""
    with pytest.raises(UserError) as caught:
        check(folder)
    line = format_error(caught.value)
    assert line.isprintable()
    return line


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a JSON value with another part at `path`."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]] if path[0] in value or isinstance(value, list) else {}, path[1:], new)
    return copy


def write_config(folder: Path, path: tuple[Any, ...], new: Any) -> None:
    (folder / "genai_config.json").write_text(json.dumps(changed(BUILT, path, new)))


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every part of a JSON value."""
    yield before
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*before, key))


# genai_config.json


def test_what_the_builder_writes_is_read(model):
    write_config(model, (), BUILT)
    assert read_genai_config(model) == BUILT


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (SESSION, {"custom_ops_library": "evil.so"}, "custom_ops_library"),
        (SESSION, {"enable_profiling": "/tmp/profile"}, "enable_profiling"),
        (SESSION, {"optimized_model_filepath": "/tmp/model.onnx"}, "optimized_model_filepath"),
        (SESSION, {"session.load_model_format": "ORT"}, "session.load_model_format"),
        (SESSION, {"config_entries": {}}, "config_entries"),
        (SESSION, {"provider_options": [{"QNN": {"backend_path": "evil.so"}}]}, "QNN"),
        (SESSION, {"provider_options": [{"OpenVINO": {}}]}, "OpenVINO"),
        (SESSION, {"provider_options": [{"cuda": {"user_compute_stream": "1"}}]}, "user_compute_stream"),
        (SESSION, {"provider_options": [{"NvTensorRtRtx": {"cache_path": "/tmp"}}]}, "cache_path"),
        ((*DECODER, "pipeline"), [], "pipeline"),
        ((*DECODER, "run_options"), {}, "run_options"),
        (("model", "encoder"), {"filename": "encoder.onnx"}, "encoder"),
        (("model", "vision"), {"config_filename": "/etc/passwd"}, "vision"),
        (("engine",), {}, "engine"),
        (("\x1b[31m",), {}, "\\x1b[31m"),
    ],
)
def test_a_key_that_no_build_has_is_named(model, path, value, key):
    write_config(model, path, value)
    line = refusal(model, read_genai_config)
    assert line.startswith(f"error: {model}/genai_config.json: ")
    assert f"has the key '{key}', which is not allowed" in line


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[((*DECODER, "filename"), name) for name in ("../model.onnx", "/etc/passwd", "a/model.onnx", "", "..", None)],
        *[((*DECODER, "inputs", "past_key_names"), name) for name in ("%s.key", "%d%n", "%100000000d", "key", "%d%d")],
        ((*DECODER, "num_hidden_layers"), 10**7),
        (("model", "vocab_size"), -5),
        (("model", "eos_token_id"), 2**31),
        (("model", "eos_token_id"), []),
        (("model", "context_length"), True),
        (("search", "num_beams"), 1000),
    ],
)
def test_a_value_that_no_build_has_is_named_by_its_key(model, path, value):
    write_config(model, path, value)
    assert f"genai_config.json: {'.'.join(path)}" in refusal(model, read_genai_config)


@pytest.mark.parametrize("value", [None, True, -1, 10**30, 1e308, "\x1b[31m", [], [None], {}, {"x": 1}], ids=ascii)
def test_every_part_may_be_of_another_type(model, value):
    lines = []
    for path in paths(BUILT):
        write_config(model, path, value)
        try:
            read_genai_config(model)
        except UserError as error:
            lines.append(format_error(error))
    assert len(lines) > 35  # of 43: an empty list, for one, is among the values of some keys
    assert all(line.isprintable() for line in lines)


def test_a_key_that_another_parser_would_read_is_refused(model):
    text = json.dumps(BUILT).replace(
        '"session_options": {', '"session_options": {"custom_ops_library": "evil.so"}, "session_options": {'
    )
    (model / "genai_config.json").write_text(text)
    assert "'session_options' is listed twice" in refusal(model)


# The folder and its other files


def spoil(name: str, how: str) -> Callable[[Path], None]:
    """Return what makes one file of the folder hostile."""

    def change(folder: Path) -> None:
        file = folder / name
        good = file.read_bytes()
        file.unlink()
        if how == "missing":
            return
        if how == "folder":
            file.mkdir()
        elif how == "link":
            (folder.parent / "outside").write_bytes(good)
            file.symlink_to(folder.parent / "outside")
        elif how == "pipe":
            os.mkfifo(file)
        elif how == "huge":
            with open(file, "wb") as sparse:
                sparse.truncate(1 << 40)
        else:
            file.write_bytes(HOW[how](good))

    return change


HOW: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda good: good[: len(good) // 2],
    "null": lambda _: b"null",
    "list": lambda _: b"[]",
    "number": lambda _: b"3",
    "object": lambda _: b"{}",
    "nested": lambda _: b"[" * 100_000,
    "digits": lambda _: b'{"model": ' + b"9" * 5000 + b"}",
    "binary": lambda _: bytes(range(256)),
    "nan": lambda _: b'{"model": NaN}',
}
FILES = ("genai_config.json", "template.json", "tokenizer.json", "tokenizer_config.json", "model.onnx")
KINDS = ("missing", "folder", "link", "pipe", "huge", *HOW)
HARMLESS = {("tokenizer_config.json", how) for how in ("missing", "object")}  # it may be absent, or say nothing


@pytest.mark.parametrize(
    ("name", "how"), [(name, how) for name in FILES for how in KINDS if (name, how) not in HARMLESS]
)
def test_a_hostile_file_is_one_line(model, name, how):
    spoil(name, how)(model)
    assert refusal(model).startswith(f"error: {model}")


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "other"}, {"task": "generation"}, {"task": ["classification"]}, {"target": "other"}, {"columns": []},
        {"columns": ["other"]}, {"columns": ["text", "text"]}, {"columns": "text"}, {"columns": [3]}, {"prompt": []},
        {"prompt": [{"column": "other"}]}, {"prompt": [{"text": 3}]}, {"prompt": [{}]}, {"prompt": ["text"]},
        {"prompt": {"text": "x"}}, {"completion": []}, {"completion": [{"column": "tone"}]},
        {"completion": [{"text": "x"}]}, {"completion": [{"column": "tone"}, {"column": "tone"}, {"text": "x"}]},
        {"labels": []}, {"labels": None}, {"labels": "joy"}, {"labels": [1, 2]}, {"labels": ["joy", "joy"]},
        {"labels": ["", "joy"]}, {"labels": {"joy": 1}}, {"labels": ["\ud800"]}, {"max_length": 0},
        {"max_length": "64"}, {"max_length": 10**30}, {"max_length": None}, {"max_length": True},
        {"truncation": "middle"}, {"truncation": None}, {"optional_columns": "text"}, {"optional_columns": [None]},
        {"unknown": 1}, {"\x1b[31m": 1},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_hostile_template_is_one_line(model, changes):
    template = json.loads((model / "template.json").read_text())
    (model / "template.json").write_text(json.dumps(template | changes))
    line = refusal(model)
    assert line.startswith(f"error: {model}/template.json: ")
    assert line.endswith("package it again")
    for key in template:
        (model / "template.json").write_text(json.dumps({k: v for k, v in template.items() if k != key}))
        assert f"it has no key '{key}'" in refusal(model)


@pytest.mark.parametrize("settings", [{"chat_template": 3}, {"chat_template": [3]}, {"chat_template": [{"name": "x"}]}])
def test_hostile_settings_of_a_tokenizer_are_one_line(model, settings):
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "tokenizer_config.json: chat_template" in refusal(model)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(None, "its tokenizer (tokenizer.json) fails"), ("(x+x+)+y", "its tokenizer cannot read a text")],
    ids=["no unknown token", "a pattern that goes back for ever"],
)
def test_a_tokenizer_that_cannot_read_a_text_is_one_line(model, pattern, expected):
    file = json.loads((model / "tokenizer.json").read_text())
    if pattern is None:
        file |= {"model": {"type": "WordLevel", "vocab": {"a": 5}, "unk_token": "none"}}
    else:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        file |= {"pre_tokenizer": split}
        template = json.loads((model / "template.json").read_text())
        template["prompt"].append({"text": "x" * 60})
        (model / "template.json").write_text(json.dumps(template))
    (model / "tokenizer.json").write_text(json.dumps(file))
    assert expected in refusal(model)


def test_a_model_that_cannot_answer_is_one_line(model):
    config = json.loads((model / "genai_config.json").read_text())
    (model / "genai_config.json").write_text(json.dumps(changed(config, ("model", "context_length"), 512)))
    assert "ONNX Runtime cannot run it" in refusal(model)  # its graph has no keys and values


def test_a_link_to_the_folder_is_followed(model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    assert read_packaged_template(tmp_path / "link")["target"] == "tone"
    assert load_packaged_tokenizer(tmp_path / "link").encode("a")
    assert open_onnx(tmp_path / "link", 1).context_length == 1


# Weights, operators, and who opens models


OPENERS = {
    "predict": ask,
    "load_onnx": lambda folder: load_onnx(folder, 1),
    "open_onnx": lambda folder: open_onnx(folder, 1),
    "Scorer": lambda folder: Scorer(folder, 1),
    "load_packaged_tokenizer": load_packaged_tokenizer,
}


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_whoever_opens_a_model_refuses_a_library(model, opener):
    config = json.loads((model / "genai_config.json").read_text())
    hostile = changed(config, (*SESSION, "custom_ops_library"), str(model / "evil.so"))
    (model / "genai_config.json").write_text(json.dumps(hostile))
    assert "'custom_ops_library'" in refusal(model, opener)


def graph_with_weights(place: str, location: str, domain: str = "") -> onnx.ModelProto:
    """Return a model that adds a weight to its ids; the weight is at `location`, in one of the places of a graph."""
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens"])
    nodes = [helper.make_node("Cast", ["input_ids"], ["cast"], to=TensorProto.FLOAT, domain=domain)]
    initializers = [weight] if place == "initializer" else []
    if place == "constant":
        nodes.append(helper.make_node("Constant", [], ["weight"], value=weight))
    elif place == "subgraph":
        inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4])
        branch = helper.make_graph([helper.make_node("Identity", ["weight"], ["inner"])], "then", [], [inner], [weight])
        initializers = [helper.make_tensor("condition", TensorProto.BOOL, [], [True])]
        nodes.append(helper.make_node("If", ["condition"], ["chosen"], then_branch=branch, else_branch=branch))
    nodes.append(helper.make_node("ReduceSum", ["chosen" if place == "subgraph" else "weight"], ["sum"], keepdims=0))
    nodes.append(helper.make_node("Add", ["cast", "sum"], ["logits"]))
    opsets = [helper.make_opsetid(name, 17) for name in {"", domain}]
    graph = helper.make_graph(nodes, "graph", [ids], [logits], initializers)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
def test_weights_lie_in_the_folder(model, place):
    (model.parent / "weights").write_bytes(bytes(16))
    shutil.copyfile(model.parent / "weights", model / "weights")
    onnx.save(graph_with_weights(place, "weights"), model / "model.onnx")
    load_onnx(model, 1)
    for location in ("../weights", str(model.parent / "weights"), "/dev/zero", "/proc/self/mem", "", ".", "none"):
        (model / "model.onnx").write_bytes(graph_with_weights(place, location).SerializeToString())
        assert "ONNX Runtime cannot load it" in refusal(model, lambda folder: load_onnx(folder, 1))
    (model / "weights").unlink()
    (model / "weights").symlink_to(model.parent / "weights")
    assert "'weights' is a link" in refusal(model, lambda folder: load_onnx(folder, 1))


def test_operators_that_are_not_known_are_refused(model):
    shutil.copyfile(model / "model.onnx", model / "weights")
    (model / "model.onnx").write_bytes(graph_with_weights("initializer", "weights", "\x1b[31m").SerializeToString())
    assert "is not a registered function/op" in refusal(model, lambda folder: load_onnx(folder, 1))


def test_the_runtime_says_nothing_by_itself(model, capfd):
    """Its own lines would show names out of the model as they are."""
    (model / "weights").write_bytes(b"cut")
    onnx.save(graph_with_weights("initializer", "weights"), model / "model.onnx")
    assert "ONNX Runtime cannot load it" in refusal(model, lambda folder: load_onnx(folder, 1))
    assert capfd.readouterr().err == ""


def test_only_one_module_opens_models():
    openers = {"runtime.py": {"Config", "Model"}, "onnx_scorer.py": {"InferenceSession"}}
    files = [path for folder in ("scripts", "benchmarks", "src") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        opening = {"Config", "Model", "InferenceSession"}
        names = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr in opening
            and isinstance(node.value, ast.Name)
            and node.value.id in ("og", "onnxruntime_genai", "onnxruntime", "ort")
        }
        imported = {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxruntime")
            for alias in node.names
        }
        assert names == openers.get(file.name, set()), file
        assert imported <= {
            "onnxruntime_genai.models.builder.create_model",
            "onnxruntime_genai.models.builder.parse_extra_options",
        }, file
