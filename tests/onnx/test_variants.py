"""What the configuration lets through can be built, loaded and run; what it refuses could not."""

import itertools
from typing import Any

import numpy as np
import pytest

from lib.config.variants import VALID_PRECISIONS, Variant
from lib.core.files import read_json
from lib.provenance.manifests import build_manifest_path
from support.onnx_samples import build, write_corpus

MIXED = (None, "last_matmul:int8", "mixed_layers:int8", "last_matmul:int8,mixed_layers:int8")
FORMS = ({}, {"use_qdq": True}, {"block_size": 16}, {"nodes_to_exclude": ["/lm_head/MatMul"]}, {"prune_lm_head": True})


def every_combination() -> list[dict[str, Any]]:
    """Of method, 8-bit parts, symmetry and form in int4; in int8, which has no parts in 8 bits, without them."""
    wide = itertools.product(["int4"], ["default", "rtn", "k_quant"], MIXED, [None, False], FORMS)
    narrow = itertools.product(["int8"], ["default", "k_quant"], [None], [None, False], FORMS[:3])
    return [
        {
            "precision": precision,
            "algo_config": algo,
            "matmul_mixed_precision": mixed,
            "is_symmetric": symmetric,
            **form,
        }
        for precision, algo, mixed, symmetric, form in itertools.chain(wide, narrow)
    ]


def is_refused(options: dict[str, Any]) -> bool:
    try:
        Variant.model_validate(options)
    except ValueError:
        return True
    return False


@pytest.mark.slow
def test_every_combination_that_is_let_through_loads_and_answers(tiny_model, tmp_path):
    """Tied embeddings (llama) and untied ones (phi3); `build_onnx` loads and asks each model itself."""
    rows = write_corpus(tmp_path / "corpus", tiny_model) / "rows.jsonl"
    built = 0
    for number, options in enumerate(every_combination()):
        if not is_refused(options):
            build(tiny_model, rows, tmp_path / str(number), **options)
            built += 1
    assert built > 90


def test_each_precision_of_a_provider_can_be_built(tiny_llama, tmp_path):
    rows = write_corpus(tmp_path / "corpus", tiny_llama) / "rows.jsonl"
    for provider, precisions in VALID_PRECISIONS.items():
        for precision in precisions:
            output = tmp_path / f"{provider}-{precision}"
            build(tiny_llama, rows, output, execution_provider=provider, precision=precision)
            assert read_json(build_manifest_path(output))["verified"] == (provider == "cpu")


def test_a_precision_that_a_provider_cannot_run_is_refused():
    with pytest.raises(ValueError, match="cuda cannot run fp32: use one of fp16, bf16, int8, int4"):
        Variant(execution_provider="cuda", precision="fp32")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_qdq": True, "precision": "int8"}, "QDQ for int4 only"),
        ({"use_qdq": True, "matmul_mixed_precision": "last_matmul:int8"}, "QDQ for int4 only"),
        ({"shared_embeddings": True, "is_symmetric": False}, "cannot be loaded"),
        ({"shared_embeddings": True, "matmul_mixed_precision": "last_matmul:int8"}, "cannot be loaded"),
    ],
)
def test_what_is_refused_could_not_be_loaded(tiny_llama, tmp_path, options, reason):
    from lib.core.cli import UserError
    from lib.onnx.builder import build as run_builder
    from lib.onnx.runtime import Reader, open_onnx

    with pytest.raises(ValueError, match=reason):
        Variant.model_validate(options)
    values = Variant().model_dump(mode="json") | options
    words = [f"{name}={str(value).lower()}" for name, value in options.items() if name != "precision"]

    def build_and_ask() -> None:
        run_builder(tiny_llama, tmp_path / "model", values, ["hf_token=false", *words])
        Reader(open_onnx(tmp_path / "model", 1), 8).read([5, 6, 7])

    with pytest.raises((UserError, RuntimeError)):
        build_and_ask()


@pytest.mark.parametrize("options", [{"is_symmetric": False}, {"matmul_mixed_precision": "last_matmul:int8"}])
def test_a_head_unlike_the_embeddings_is_kept_apart_from_them(tiny_llama, tiny_phi3, tmp_path, options):
    """The builder would share one weight, in a form that nothing loads; the manifest says what it was told."""
    for name, base in (("llama", tiny_llama), ("phi3", tiny_phi3)):
        rows = write_corpus(tmp_path / f"corpus-{name}", base) / "rows.jsonl"
        build(base, rows, tmp_path / name, **options)
        told = read_json(tmp_path / f"{name}.manifest.json")["builder_options"]
        assert ("shared_embeddings=false" in told) == (name == "llama")


def test_an_8_bit_head_is_nearer_to_the_checkpoint(tiny_phi3, tmp_path):
    """The same body, the head in 4 or in 8 bits or whole: what it adds to the error falls in that order."""
    from lib.models.safetensors_streaming import locate_weights, read_weight
    from lib.onnx.graph import Graph, dequantize

    rows = write_corpus(tmp_path / "corpus", tiny_phi3) / "rows.jsonl"
    head = read_weight(locate_weights(tiny_phi3)["lm_head.weight"], "lm_head.weight").float().numpy()
    errors = []
    for name, options in (("int4", {}), ("int8", {"matmul_mixed_precision": "last_matmul:int8"})):
        graph = Graph(build(tiny_phi3, rows, tmp_path / name, **options) / "model.onnx")
        node = next(node for node in graph.quantized if "lm_head" in node)
        errors.append(float(np.abs(dequantize(graph.read_quantized(node)) - head).mean()))
    whole = build(tiny_phi3, rows, tmp_path / "whole", nodes_to_exclude=["/lm_head/MatMul"])
    assert errors[1] < errors[0] / 8
    assert not any("lm_head" in node for node in Graph(whole / "model.onnx").quantized)


@pytest.mark.parametrize(("provider", "width"), [("cuda", "FLOAT16"), ("dml", "FLOAT16"), ("cpu", "FLOAT")])
def test_a_whole_head_is_in_the_precision_of_its_provider(tiny_phi3, tmp_path, provider, width):
    import onnx

    rows = write_corpus(tmp_path / "corpus", tiny_phi3) / "rows.jsonl"
    options = {"execution_provider": provider, "nodes_to_exclude": ["/lm_head/MatMul"]}
    folder = build(tiny_phi3, rows, tmp_path / provider, **options)
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    kinds = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    head = next(node for node in graph.node if node.name == "/lm_head/MatMul")
    assert kinds[head.input[1]] == width
    assert read_json(tmp_path / f"{provider}.manifest.json")["verified"] == (provider == "cpu")
