"""Calibrated int4: learned on training rows alone, better than rounding, and built as it was learned."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.config.variants import Variant
from lib.core.cli import UserError
from lib.core.files import hash_file, read_json, read_jsonl
from lib.data.tokenizer import load_tokenizer
from lib.models.loading import load_model
from lib.models.safetensors_streaming import locate_weights, read_weight
from lib.onnx.auto_round import check_layers
from lib.onnx.calibration import calibrate as run_calibration
from lib.onnx.graph import Graph, dequantize, dequantize_gptq
from lib.onnx.methods import CALIBRATED
from support.onnx_samples import build
from support.training import make_corpus


def calibrate(
    merged: Path,
    corpus: Path,
    output: Path,
    seed: int = 0,
    symmetric: bool | None = None,
    block: int | None = None,
    method: str = "gptq",
    **changes,
) -> Path:
    """Run `calibrate_weights` in this process: importing AutoRound takes seconds."""
    import calibrate_weights

    own = {"rows": 16} if method == "gptq" else {"rows": 16, "length": 32, "iterations": 20}
    values = {"algo_config": method, "block_size": block, "is_symmetric": symmetric, "calibration": own | changes}
    variant = Variant.model_validate(values).model_dump(exclude_none=True)
    settings = {"variant": variant, "seed": seed, "versions": {}}
    where = {"merged": merged, "rows": corpus / "train.jsonl", "output": output}
    calibrate_weights.main(argparse.Namespace(settings=settings, threads=1, **where))
    return output


@pytest.fixture(scope="module")
def corpus(tiny_llama, tmp_path_factory) -> Path:
    return make_corpus(tiny_llama, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", params=CALIBRATED)
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def calibrated(tiny_llama, corpus, method, tmp_path_factory) -> Path:
    return calibrate(tiny_llama, corpus, tmp_path_factory.mktemp("calibrated") / "weights", method=method)


def weights_of(calibrated: Path) -> dict[str, np.ndarray]:
    """The values that a calibrated checkpoint stands for, by the name of the weight."""
    stored = locate_weights(calibrated)
    modules = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]

    def raw(name: str) -> np.ndarray:
        return read_weight(stored[name], name).numpy()

    return {
        f"{module}.weight": dequantize_gptq(*(raw(f"{module}.{part}") for part in ("qweight", "scales", "qzeros")))
        for module in modules
    }


def error_on(rows: Path, base: Path, values: dict[str, np.ndarray]) -> float:
    """Mean squared error of the hidden states behind the last layer, with some weights replaced."""
    tokenizer = load_tokenizer(base)
    whole, rounded = load_model(base), load_model(base)
    named = dict(rounded.named_parameters())
    for name, value in values.items():
        named[name].data = torch.tensor(value)
    total = 0.0
    with torch.inference_mode():
        for row in read_jsonl(rows):
            ids = torch.tensor([tokenizer.encode(row["prompt"] + row["completion"])])
            states = [model.model(ids).last_hidden_state for model in (whole, rounded)]
            total += float(((states[0] - states[1]) ** 2).mean())
    return total


def test_every_linear_layer_is_calibrated_and_the_error_falls(tiny_llama, corpus, calibrated, tmp_path):
    """Against the builder's rounding of the same layers to blocks of the same size."""
    values = weights_of(calibrated)
    assert len(values) == 14, "seven layers, twice; not the vocabulary head"
    graph = Graph(build(tiny_llama, corpus / "train.jsonl", tmp_path / "int4") / "model.onnx")
    rounded = {}
    for node in graph.quantized:
        name = node.strip("/").rpartition("/")[0].replace("/", ".").replace(".attn.", ".self_attn.") + ".weight"
        if name in values:
            rounded[name] = dequantize(graph.read_quantized(node))
    assert len(rounded) == 8, "the builder joins q, k and v, which have no weight of their own there"
    calibrated_too = {name: values[name] for name in rounded}
    errors = [error_on(corpus / "train.jsonl", tiny_llama, part) for part in (calibrated_too, rounded)]
    assert errors[0] < 0.9 * errors[1]


def test_calibrated_weights_lie_on_a_4_bit_grid_near_the_original(tiny_llama, calibrated):
    stored = locate_weights(tiny_llama)
    for name, value in weights_of(calibrated).items():
        original = read_weight(stored[name], name).float().numpy()
        blocks = value.reshape(len(value), -1, 32)
        assert max(len(np.unique(block)) for row in blocks for block in row) <= 16
        steps = np.abs(original.reshape(blocks.shape)).max(axis=-1, keepdims=True) / 8
        errors = np.abs(blocks - original.reshape(blocks.shape)) / steps
        assert errors.mean() < 0.5, "rounding to the nearest gives 0.25"


def test_the_rows_are_training_rows_and_are_named(calibrated, corpus):
    manifest = read_json(calibrated.with_name("weights.manifest.json"))
    used = manifest["calibration_rows"]
    assert len(set(used)) == 16
    assert set(used) <= {row["id"] for row in read_jsonl(corpus / "train.jsonl")}
    assert not set(used) & {row["id"] for row in read_jsonl(corpus / "validation.jsonl")}
    assert manifest["inputs"]["rows"] == hash_file(corpus / "train.jsonl")


@pytest.fixture(scope="module")
def built(tiny_llama, corpus, calibrated, method, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "model"
    return build(tiny_llama, corpus / "validation.jsonl", folder, calibrated=calibrated, algo_config=method)


def test_the_built_model_holds_the_calibrated_weights_bit_for_bit(built, calibrated):
    manifest = read_json(built.with_name("model.manifest.json"))
    assert manifest["grid"] == "calibrated+default", "the head is not calibrated"
    assert manifest["compared"]["weights"] == manifest["compared"]["of_weights"] == 11
    assert manifest["inputs"].keys() == {"merged", "calibrated"}
    graph, values = Graph(built / "model.onnx"), weights_of(calibrated)
    found = [dequantize(graph.read_quantized(node)) for node in graph.quantized]
    attention = [f"model.layers.{layer}.self_attn" for layer in (0, 1)]
    joined = [np.concatenate([values.pop(f"{name}.{part}_proj.weight") for part in "qkv"]) for name in attention]
    for value in [*values.values(), *joined]:
        assert any(one.shape == value.shape and np.array_equal(one, value) for one in found)
    assert len(found) == 11, "with the head, which the builder rounds"


def test_weights_that_are_not_the_calibrated_ones_are_refused(tiny_llama, corpus, calibrated, built, tmp_path):
    """Negative control: the same model, calibrated by another draw of rows, is not what was built."""
    from lib.onnx.build_checks import check_weights

    other = calibrate(tiny_llama, corpus, tmp_path / "other", seed=1, rows=4)
    graph, variant = Graph(built / "model.onnx"), {"algo_config": "gptq"}
    check_weights(graph, tiny_llama, variant, calibrated)
    with pytest.raises(UserError, match="is not what calibration made of"):
        check_weights(graph, tiny_llama, variant, other)


def test_the_same_seed_gives_the_same_bytes(tiny_llama, corpus, calibrated, method, tmp_path):
    again = calibrate(tiny_llama, corpus, tmp_path / "weights", method=method)
    assert read_json(tmp_path / "weights.manifest.json") == read_json(calibrated.with_name("weights.manifest.json"))
    assert (again / "model.safetensors").read_bytes() == (calibrated / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"matmul_mixed_precision": "last_matmul:int8"}, {"is_symmetric": False}])
def test_calibrated_variants_with_another_head_or_zero_points_load(tiny_llama, corpus, tmp_path, options):
    calibrated = calibrate(tiny_llama, corpus, tmp_path / "weights", symmetric=options.get("is_symmetric"))
    rows = corpus / "validation.jsonl"
    build(tiny_llama, rows, tmp_path / "model", calibrated=calibrated, algo_config="gptq", **options)


def test_fused_layers_are_calibrated_too(tiny_phi3, method, tmp_path):
    corpus = make_corpus(tiny_phi3, tmp_path / "corpus")
    calibrated = calibrate(tiny_phi3, corpus, tmp_path / "weights", method=method)
    assert len(weights_of(calibrated)) == 8
    rows = corpus / "validation.jsonl"
    build(tiny_phi3, rows, tmp_path / "model", calibrated=calibrated, algo_config=method)
    assert read_json(calibrated / "generation_config.json")["eos_token_id"] == [2, 3]


def test_weights_of_another_model_are_refused(tiny_llama, tiny_phi3, corpus, calibrated, tmp_path):
    with pytest.raises(UserError, match="calibrated from another merged model"):
        build(
            tiny_phi3, corpus / "validation.jsonl", tmp_path / "model", calibrated=calibrated, algo_config="auto_round"
        )


@pytest.mark.parametrize(
    ("kinds", "more", "length", "expected"),
    [
        (["full_attention", "full_attention"], {}, 512, None),
        (["sliding_attention", "full_attention"], {"sliding_window": 512}, 512, None),
        (["sliding_attention", "full_attention"], {"sliding_window": 511}, 512, "full_attention and sliding_attention"),
        (["linear_attention", "full_attention"], {}, 8, "full_attention and linear_attention"),
        (
            ["sliding_attention", "full_attention"],
            {"sliding_window": 512, "rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
            8,
            "full_attention and sliding_attention",
        ),
    ],
)
def test_layers_that_autoround_would_run_as_another_kind_are_refused(kinds, more, length, expected):
    """It hands the first layer's mask and positions to all: Gemma 3 and Qwen 3.5 were rounded for other inputs."""
    config = SimpleNamespace(layer_types=kinds, **more)
    if expected is None:
        check_layers(config, length, "variants.mine")
        return
    with pytest.raises(UserError, match=rf"variants\.mine: AutoRound \S+ runs every layer .* {expected} layers; take"):
        check_layers(config, length, "variants.mine")


def test_what_a_method_cannot_run_is_one_line(tiny_llama, method, tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    def refuse(self, *given, **named):
        raise ValueError("no such layer\nand more")

    monkeypatch.setattr(LlamaDecoderLayer, "forward", refuse)
    (tmp_path / "out").mkdir()
    variant = {"algo_config": method, "calibration": {"length": 16, "iterations": 1}}
    with pytest.raises(UserError, match=r"cannot round this model: ValueError: no such layer; take algo_config: "):
        run_calibration(tiny_llama, [[1] * 16], variant, 0, tmp_path / "out")
