"""What would stop the stages after it is told before the training, and nothing that they would do is refused."""

import argparse

import check_build
import check_corpus
import pytest

from lib.config.variants import Variant
from lib.core.cli import UserError
from support.onnx_samples import SETTINGS, build, write_corpus


@pytest.fixture(scope="module")
def check(tiny_phi3, tmp_path_factory):
    """Run the check of one variant of the tiny Phi-3 (64 and 128 columns, 2 layers, 512 tokens)."""
    folder = tmp_path_factory.mktemp("check")
    rows = {task: write_corpus(folder / task, tiny_phi3, task) for task in ("classification", "generation")}

    def run(task: str = "classification", new_tokens: int = 8, max_new_tokens: int = 6, **options):
        variant = Variant.model_validate(options).model_dump(mode="json", exclude_none=True)
        columns = check_build.read_row_lengths(tiny_phi3)
        check_build.check_block_size("mine", variant, columns)
        check_build.check_nodes("mine", variant, columns, layers=2)
        calibrated = variant.get("algo_config") == "auto_round"
        settings = {
            "seed": 0,
            "calibrations": {"mine": variant["calibration"]} if calibrated else {},
            "evaluate": SETTINGS["evaluate"] | {"max_new_tokens": max_new_tokens},
            "benchmark": {"prompts": 3, "new_tokens": new_tokens},
        }
        files = dict.fromkeys(("train", "validation", "test"), rows[task] / "rows.jsonl")
        check_corpus.main(
            argparse.Namespace(
                settings=settings,
                tokenizer=tiny_phi3,
                template=rows[task] / "template.json",
                **files,
            )
        )

    run.rows = rows["classification"] / "rows.jsonl"
    return run


@pytest.mark.parametrize(
    ("task", "settings", "expected"),
    [
        (
            "classification",
            {"algo_config": "k_quant", "block_size": 64},
            "variants.mine: k_quant cannot cut the 64 columns of model.layers.0.mlp.gate_up_proj.weight into blocks of block_size 64; take 16 or 32 or algo_config: default",
        ),
        (
            "classification",
            {"algo_config": "auto_round", "block_size": 128},
            "auto_round cannot cut the 64 columns of model.layers.0.mlp.gate_up_proj.weight into blocks of block_size 128; take 16 or 32 or 64",
        ),
        (
            "classification",
            {"algo_config": "auto_round", "calibration": {"rows": 1, "length": 400}},
            "its 1 calibration rows fill no sequence of 400 tokens; lower calibration.length",
        ),
        (
            "classification",
            {"nodes_to_exclude": ["/lm_head/MatMull"]},
            "this model of 2 layers has no node /lm_head/MatMull",
        ),
        (
            "classification",
            {"nodes_to_exclude": ["/model/layers.2/mlp/down_proj/MatMul"]},
            "has no node /model/layers.2/mlp/down_proj/MatMul",
        ),
        (
            "classification",
            {"nodes_to_exclude": ["/model/layers.0/mlp/down/MatMul"]},
            "names are /lm_head/MatMul and such as",
        ),
        (
            "generation",
            {"max_new_tokens": 500},
            "rows.jsonl:1: a prompt of 22 tokens and an answer of up to 500 exceed the model's 512",
        ),
        (
            "classification",
            {"new_tokens": 500},
            "an answer of up to 500 exceed the model's 512; lower corpus.max_length",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_training(check, task, settings, expected):
    with pytest.raises(UserError) as error:
        check(task, **settings)
    assert expected in str(error.value)


@pytest.mark.parametrize("size", [32, 64, 256])
@pytest.mark.parametrize(
    "options",
    [
        {"algo_config": "default", "is_symmetric": False},
        {"algo_config": "rtn"},
        {"algo_config": "rtn", "is_symmetric": False},
        {"algo_config": "k_quant"},
        {"algo_config": "k_quant", "precision": "int8"},
        {"algo_config": "k_quant", "matmul_mixed_precision": "last_matmul:int8"},
    ],
)
def test_the_check_says_what_the_builder_does(check, tiny_phi3, tmp_path, options, size):
    def passes(function, *args, **options) -> bool:
        try:
            function(*args, **options)
        except UserError:
            return False
        return True

    options = options | {"block_size": size}
    assert passes(check, **options) == passes(build, tiny_phi3, check.rows, tmp_path / "model", **options)


def test_what_can_be_built_passes(check):
    nodes = ["/lm_head/MatMul", "/model/layers.1/mlp/down_proj/MatMul", "/model/layers.0/attn/qkv_proj/MatMul"]
    check(nodes_to_exclude=nodes)
    check("generation", algo_config="auto_round", calibration={"rows": 5, "length": 32})
