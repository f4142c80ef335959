"""Building, scoring and measuring ONNX models, on random 2-layer models."""

import argparse
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers, trainers

from lib.core.cli import UserError
from lib.core.files import read_jsonl, write_json, write_jsonl
from lib.provenance.manifests import write_manifest
from support.onnx_samples import LABELS, build, score, write_corpus
from support.paths import SCRIPTS


@pytest.fixture(scope="module")
def corpus(tiny_model, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), tiny_model)


@pytest.fixture(scope="module")
def fp32(tiny_model, corpus, tmp_path_factory):
    return build(tiny_model, corpus / "rows.jsonl", tmp_path_factory.mktemp("onnx") / "fp32", precision="fp32")


@pytest.fixture(scope="module")
def phi3_corpus(tiny_phi3, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("phi3-corpus"), tiny_phi3)


@pytest.fixture(scope="module")
def llama_corpus(tiny_llama, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("llama-corpus"), tiny_llama)


@pytest.fixture(scope="module")
def phi3_fp32(tiny_phi3, phi3_corpus, tmp_path_factory):
    return build(tiny_phi3, phi3_corpus / "rows.jsonl", tmp_path_factory.mktemp("onnx") / "fp32", precision="fp32")


def manifest_of(folder: Path) -> dict:
    return json.loads(folder.with_name(f"{folder.name}.manifest.json").read_text())


def merged_weight(base: Path, name: str) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(base / "model.safetensors")[name]


# Building


def test_a_build_is_verified_and_holds_only_what_it_needs(fp32, tiny_model):
    manifest = manifest_of(fp32)
    assert manifest["verified"] is True
    assert manifest["grid"] is None
    assert manifest["compared"] == {"weights": 11, "of_weights": 11, "logits": True}
    assert manifest["nodes"]["MatMul"] == 11
    assert manifest["size_bytes"] == sum(file.stat().st_size for file in fp32.iterdir())
    assert {file.name for file in fp32.iterdir()} == {
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    for file in fp32.iterdir():
        assert str(tiny_model.parent).encode() not in file.read_bytes(), file


def test_two_builds_are_the_same_bytes(tiny_phi3, phi3_corpus, tmp_path):
    for name in ("one", "two"):
        build(tiny_phi3, phi3_corpus / "rows.jsonl", tmp_path / name / "int4")
    first, second = ((tmp_path / name / "int4.manifest.json").read_bytes() for name in ("one", "two"))
    assert first == second


def test_the_projects_own_commit_is_not_in_the_model(fp32):
    """The builder asks git around its package, and the environment may lie in this checkout."""
    import onnx

    stamp = onnx.load(fp32 / "model.onnx", load_external_data=False).producer_version
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=sys.prefix, capture_output=True, text=True)
    assert stamp.startswith("0.")
    assert not done.stdout or done.stdout[:7] not in stamp


def test_fp32_logits_of_another_checkpoint_are_refused(tiny_llama, phi3_fp32, phi3_corpus, tiny_phi3, tmp_path):
    from safetensors.numpy import load_file, save_file

    from lib.data.tokenizer import load_tokenizer
    from lib.onnx.build_checks import check_logits
    from lib.onnx.graph import Graph

    other = shutil.copytree(tiny_phi3, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    prompts = [json.loads(line)["prompt"] for line in (phi3_corpus / "rows.jsonl").read_text().splitlines()]
    encoded, graph = load_tokenizer(tiny_phi3).encode_batch(prompts), Graph(phi3_fp32 / "model.onnx")
    assert check_logits(phi3_fp32, graph, tiny_phi3, encoded, 1) < 1e-5
    with pytest.raises(UserError, match="with the same weights its logits differ"):
        check_logits(phi3_fp32, graph, other, encoded, 1)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, "default"),
        ({"algo_config": "rtn"}, "rtn"),
        ({"algo_config": "k_quant"}, "asymmetric"),
        ({"is_symmetric": False}, "asymmetric"),
        ({"block_size": 128}, "default"),  # longer than a row of 64 values
        ({"precision": "int8"}, "default"),
        ({"algo_config": "k_quant", "matmul_mixed_precision": "last_matmul:int8,mixed_layers:int8"}, "asymmetric"),
        ({"use_qdq": True}, "default"),
        ({"use_qdq": True, "is_symmetric": False}, "asymmetric"),
    ],
)
def test_quantized_weights_are_the_merged_ones_on_the_grid_that_was_asked_for(
    tiny_phi3, phi3_corpus, tmp_path, options, grid
):
    from lib.onnx.graph import Graph, dequantize

    folder = build(tiny_phi3, phi3_corpus / "rows.jsonl", tmp_path / "int4", **options)
    assert manifest_of(folder)["grid"] == grid
    assert manifest_of(folder)["compared"] == {"weights": 11, "of_weights": 11, "logits": True}
    graph = Graph(folder / "model.onnx")
    assert len(graph.quantized) == 11
    node = next(name for name in graph.quantized if "layers.1/mlp/down_proj" in name)
    weight = graph.read_quantized(node)
    original = merged_weight(tiny_phi3, "model.layers.1.mlp.down_proj.weight")
    values = dequantize(weight)
    assert values.shape == original.shape == (64, 128)
    steps = np.repeat(np.abs(weight.scales), weight.codes.shape[2], axis=1)[:, :128]
    assert (np.abs(values - original) <= 1.01 * steps).all()
    assert np.median(np.abs(values - original) / steps) < 0.3  # uniform in a half step: 0.25


PARTS = {
    "phi3": ("self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "llama": ("self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "int8"},
        {"precision": "fp32"},
        {"use_qdq": True},
        {"op_types_to_quantize": ["Gather"]},
        {"nodes_to_exclude": ["/model/layers.1/attn/qkv_proj/MatMul", "/model/layers.1/mlp/up_proj/MatMul"]},
        {"execution_provider": "cuda", "precision": "fp16"},
        {"execution_provider": "cuda", "precision": "bf16"},
        {"execution_provider": "cuda", "precision": "int8"},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", PARTS)
def test_every_build_is_compared_with_the_merged_weights_also_those_that_are_joined_or_split(
    request, tmp_path, family, options
):
    """Whatever is quantized or not: a weight of another model is told apart, if only the end of it differs."""
    from lib.onnx.build_checks import check_weights
    from lib.onnx.graph import Graph
    from support.changed_models import change, spoiled

    base, corpus = request.getfixturevalue(f"tiny_{family}"), request.getfixturevalue(f"{family}_corpus")
    folder = build(base, corpus / "rows.jsonl", tmp_path / "built", **options)
    compared = manifest_of(folder)["compared"]
    embeddings = family == "phi3" and "Gather" in options.get("op_types_to_quantize", [])
    assert compared["weights"] == compared["of_weights"] == 11 + embeddings
    graph = Graph(folder / "model.onnx")

    def raise_the_last_row(weight):
        weight[-1] += 0.5
        return weight

    for part in PARTS[family]:
        other = spoiled(base, tmp_path / part, change(f"layers.1.{part}.weight", raise_the_last_row))
        with pytest.raises(UserError, match=rf"/model/layers\.1/.*layers\.1\.{part}\.weight"):
            check_weights(graph, other, options)


def test_a_build_of_which_nothing_could_be_compared_is_not_called_verified(
    tiny_phi3, phi3_corpus, tmp_path, monkeypatch
):
    """As when a builder names its nodes otherwise."""
    from lib.onnx import build_checks

    monkeypatch.setattr(build_checks, "list_merged_names", lambda node, names: [])
    with pytest.raises(UserError, match="nothing of the built model could be compared with the merged one"):
        build(tiny_phi3, phi3_corpus / "rows.jsonl", tmp_path / "int4")
    assert not list(tmp_path.iterdir())
    folder = build(tiny_phi3, phi3_corpus / "rows.jsonl", tmp_path / "fp32", precision="fp32")  # its logits are
    assert manifest_of(folder)["compared"] == {"weights": 0, "of_weights": 11, "logits": True}


def test_the_grid_check_tells_weights_and_grids_apart(tiny_phi3, phi3_corpus, tmp_path):
    from lib.onnx.build_checks import check_weights
    from lib.onnx.graph import Graph, measure_largest_error, name_grid

    folder = build(tiny_phi3, phi3_corpus / "rows.jsonl", tmp_path / "int4")
    graph = Graph(folder / "model.onnx")
    weight = graph.read_quantized("/model/layers.0/attn/o_proj/MatMul_Q4")
    right = merged_weight(tiny_phi3, "model.layers.0.self_attn.o_proj.weight")
    other = merged_weight(tiny_phi3, "model.layers.1.self_attn.o_proj.weight")
    assert measure_largest_error(weight, right) <= 0.52
    assert measure_largest_error(weight, other) > 2
    assert name_grid(weight, right) == "default"
    assert name_grid(weight, other) == "other"
    with pytest.raises(UserError, match="algo_config rtn gave weights on the grid default"):
        check_weights(graph, tiny_phi3, {"algo_config": "rtn"})


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"model_type": "gemma"}, True),
        ({"model_type": "llama"}, False),
        ({"model_type": "llama", "tie_word_embeddings": True}, True),
    ],
)
def test_a_head_is_tied_where_the_models_class_says_so_too(tmp_path, config, tied):
    from lib.onnx.builder import has_tied_head

    (tmp_path / "config.json").write_text(json.dumps(config))
    assert has_tied_head(tmp_path) == tied


def test_end_tokens_and_greedy_search_reach_the_built_model(tiny_phi3, phi3_corpus, tmp_path):
    base = shutil.copytree(tiny_phi3, tmp_path / "sampling")
    shutil.copyfile(f"{tiny_phi3}.manifest.json", tmp_path / "sampling.manifest.json")
    path = base / "generation_config.json"
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}
    path.write_text(json.dumps(json.loads(path.read_text()) | sampling))
    folder = build(base, phi3_corpus / "rows.jsonl", tmp_path / "int4")
    config = json.loads((folder / "genai_config.json").read_text())
    assert set(config["model"]["eos_token_id"]) >= {2, 3}
    search = config["search"]
    assert search["do_sample"] is False
    assert (search["temperature"], search["top_k"], search["top_p"]) == (1.0, 1, 1.0)
    assert (search["num_beams"], search["repetition_penalty"]) == (1, 1.0)
    assert search["max_length"] <= config["model"]["context_length"]


def test_a_lost_end_token_is_an_error(phi3_fp32, tmp_path):
    from lib.onnx.build_checks import configure_search

    folder = shutil.copytree(phi3_fp32, tmp_path / "copy")
    with pytest.raises(UserError, match=r"lost the end tokens \[7\]"):
        configure_search(folder, frozenset({2, 3, 7}))


def test_unknown_node_names_are_refused(tiny_phi3, phi3_corpus, tmp_path):
    rows = phi3_corpus / "rows.jsonl"
    with pytest.raises(UserError, match=r"no node /lm_head/MatMull; its nodes are /model/layers\.0"):
        build(tiny_phi3, rows, tmp_path / "wrong", nodes_to_exclude=["/lm_head/MatMull"])
    folder = build(tiny_phi3, rows, tmp_path / "right", nodes_to_exclude=["/lm_head/MatMul"])
    assert manifest_of(folder)["nodes"]["MatMulNBits"] == 10


@pytest.mark.parametrize(("provider", "precision"), [("cuda", "int4"), ("dml", "fp16"), ("trt-rtx", "fp16")])
def test_what_cannot_run_here_is_checked_and_marked(tiny_phi3, phi3_corpus, tmp_path, provider, precision):
    from lib.onnx.graph import Graph

    options = {"execution_provider": provider, "precision": precision}
    folder = build(tiny_phi3, phi3_corpus / "rows.jsonl", tmp_path / provider, **options)
    assert manifest_of(folder)["verified"] is False
    assert manifest_of(folder)["compared"]["weights"] >= 11
    assert Graph(folder / "model.onnx").fault() is None
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    assert "is not in model.onnx.data" in (Graph(folder / "model.onnx").fault() or "")


def test_the_command_line_fails_in_one_line(run_script, tiny_phi3, tmp_path):
    done = run_script(
        "build_onnx",
        *("--settings", {"variant": {"precision": "int4", "execution_provider": "cpu"}}),
        *("--merged", tiny_phi3, "--rows", tmp_path / "none.jsonl"),
        *("--output", tmp_path / "int4"),
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {tmp_path / 'none.jsonl'}: no such file; check the path"


# Reading and scoring


def sum_over_passes(folder: Path, prompt: list[int], answer: list[int]) -> float:
    """Log probability of `answer`, each of its ids from a pass of its own over all before it."""
    import onnxruntime_genai as og

    from lib.onnx.runtime import compute_log_softmax

    model, total = og.Model(str(folder)), 0.0
    for place, id_ in enumerate(answer):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt + answer))
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(prompt + answer[:place], dtype=np.int32))
        total += float(compute_log_softmax(generator.get_logits()[0, -1])[id_])
    return total


def test_scores_equal_a_full_pass_and_the_checkpoint(fp32, tiny_model, corpus, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from lib.data.tokenizer import load_tokenizer
    from lib.evaluation.scoring import encode_choices

    result, predictions = score(fp32, tiny_model, corpus, tmp_path / "score.json")
    rows = [json.loads(line) for line in (corpus / "rows.jsonl").read_text().splitlines()]
    template = json.loads((corpus / "template.json").read_text())
    choices = encode_choices(load_tokenizer(tiny_model), template, [row["prompt"] for row in rows])
    checkpoint = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert [p["id"] for p in predictions] == [row["id"] for row in rows]
    assert result["quality"]["n"] == len(rows)
    for prediction, (prompt, answers) in zip(predictions, choices, strict=True):
        for label, answer in zip(LABELS, answers, strict=True):
            found = prediction["log_probs"][label]
            assert found == pytest.approx(sum_over_passes(fp32, prompt, answer), abs=1e-4)
            with torch.inference_mode():
                logits = checkpoint(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            expected = logits[range(len(prompt) - 1, len(prompt + answer) - 1), answer].sum()
            assert found == pytest.approx(float(expected), abs=1e-3)
        assert prediction["predicted"] == max(LABELS, key=lambda label: prediction["log_probs"][label])
    assert [p["answer"] is not None for p in predictions] == [True, True, False, False, False]


def test_free_answers_equal_those_of_the_checkpoint(fp32, tiny_model, corpus):
    import torch
    from transformers import AutoModelForCausalLM

    from lib.data.tokenizer import load_tokenizer
    from lib.onnx.runtime import Reader, load_onnx

    model = load_onnx(fp32, threads=1)
    checkpoint = AutoModelForCausalLM.from_pretrained(tiny_model)
    prompts = load_tokenizer(fp32).encode_batch([row["prompt"] for row in read_jsonl(corpus / "rows.jsonl")])
    reader = Reader(model, max(map(len, prompts)) + 6)
    for prompt in prompts:
        reader.read(prompt)
        ids = torch.tensor([prompt])
        expected = checkpoint.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=6, do_sample=False)
        assert reader.answer(6) == expected[0, len(prompt) :].tolist()


def test_a_pruned_head_scores_the_same(tiny_phi3, phi3_corpus, phi3_fp32, tmp_path):
    whole = build(tiny_phi3, phi3_corpus / "rows.jsonl", tmp_path / "whole", precision="fp32", prune_lm_head=False)
    expected = score(whole, tiny_phi3, phi3_corpus, tmp_path / "whole.json")[1]
    found = score(phi3_fp32, tiny_phi3, phi3_corpus, tmp_path / "pruned.json")[1]
    for one, other in zip(found, expected, strict=True):
        assert one["log_probs"] == pytest.approx(other["log_probs"], abs=1e-4)
        assert one["answer"] == other["answer"]


def test_reading_on_after_an_end_token_is_like_starting_anew(phi3_fp32):
    from lib.onnx.runtime import Reader, load_onnx

    model = load_onnx(phi3_fp32, threads=1)
    reader = Reader(model, 30)
    prompts = [[4, 9, 8, 7], [4, 9, 8, 7, 6, 5], [4, 9], [12, 11, 10]]
    for prompt in prompts:
        fresh = Reader(model, 20)
        assert np.allclose(reader.read(prompt), fresh.read(prompt), atol=1e-5)
        expected = fresh.answer(3)
        forced = np.full((1, 1000), -1e9, dtype=np.float32)
        forced[0, 3] = 0  # <|end|>
        reader._generator.set_logits(forced)
        assert reader.answer(5) == [3]
        reader.read([4, 4])
        reader.read(prompt)
        assert reader.answer(3) == expected


def test_generation_scores_the_reference(phi3_fp32, tiny_phi3, tmp_path):
    from lib.data.tokenizer import encode_pairs, load_tokenizer

    corpus = write_corpus(tmp_path / "corpus", tiny_phi3, task="generation")
    result, predictions = score(phi3_fp32, tiny_phi3, corpus, tmp_path / "score.json", task="generation")
    rows = [json.loads(line) for line in (corpus / "rows.jsonl").read_text().splitlines()]
    pairs = encode_pairs(load_tokenizer(tiny_phi3), [(row["prompt"], row["completion"]) for row in rows])
    for prediction, (prompt, completion) in zip(predictions, pairs, strict=True):
        assert prediction["tokens"] == len(completion)
        assert prediction["log_prob"] == pytest.approx(sum_over_passes(phi3_fp32, prompt, completion), abs=1e-4)
        assert prediction["reference"].startswith("a fresh ")
    assert result["quality"]["perplexity"] > 1


def test_another_tokenizer_is_an_error_that_names_the_row(phi3_fp32, tiny_phi3, phi3_corpus, tmp_path):
    model = shutil.copytree(phi3_fp32, tmp_path / "model")
    shutil.copyfile(f"{phi3_fp32}.manifest.json", tmp_path / "model.manifest.json")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Ġdog"], vocabulary["Ġold"] = vocabulary["Ġold"], vocabulary["Ġdog"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        UserError,
        match=r"rows\.jsonl:4: the model's tokenizer reads token \d+ as (\d+) 'Ġold', the training tokenizer as (?!\1)\d+ 'Ġold'",
    ):
        score(model, tiny_phi3, phi3_corpus, tmp_path / "score.json")
    assert not (tmp_path / "score.json").exists()


def test_a_model_whose_tokenizer_onnx_runtime_cannot_read_is_scored_alike(phi3_fp32, tiny_phi3, phi3_corpus, tmp_path):
    model = shutil.copytree(phi3_fp32, tmp_path / "model")
    shutil.copyfile(f"{phi3_fp32}.manifest.json", tmp_path / "model.manifest.json")
    edit_json(model / "tokenizer_config.json", tokenizer_class="OfAnotherLibrary")
    found = score(model, tiny_phi3, phi3_corpus, tmp_path / "score.json")[1]
    assert found == score(phi3_fp32, tiny_phi3, phi3_corpus, tmp_path / "as_built.json")[1]


# What other programs read

HARD_TEXTS = ["日本 עברית 👩‍👩‍👧", "a\r\nb \n c", "x  24", "<|user|>\nhi<|end|>", "<s>hello", "  lead", "�\u200d"]


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_split(pattern: str):
    """A change of the tokenizer: it first splits texts by a regular expression."""

    def change(backend):
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, last])

    return change


def digits_apart(backend):
    """As of SmolLM2 and StarCoder, which have tokens of several spaces."""
    digits, last = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, last])
    specials = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items()) if token.special]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=last.alphabet())
    backend.train_from_iterator(["Total:  10 of  20"] * 9, trainer)


def composing(backend):
    """As of Qwen."""
    backend.normalizer = normalizers.NFC()


def unchanged(backend):
    pass


def base_with(base: Path, folder: Path, change, **config) -> Path:
    """A copy of the base model, its manifest included, with a changed tokenizer."""
    copy = shutil.copytree(base, folder / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    backend = tokenizers.Tokenizer.from_file(str(copy / "tokenizer.json"))
    change(backend)
    backend.save(str(copy / "tokenizer.json"))
    edit_json(copy / "tokenizer_config.json", **config)
    write_manifest(copy, inputs={}, settings={})
    return copy


AS_IT_IS = {
    "columns": ["text"],
    "prompt": [{"column": "text"}],
    "completion": [{"column": "label"}, {"text": "<|end|>"}],
}


def checked(base: Path, folder: Path, texts: list[str]) -> dict:
    """The verdict on two training rows and one row in each other split for each text."""
    import check_tokenizer

    rows = [{"prompt": text, "completion": f"joy{text}<|end|>"} for text in texts]
    files = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
    for file in files.values():
        write_jsonl(file, rows)
    write_json(folder / "template.json", AS_IT_IS)
    places = {"tokenizer": base, "template": folder / "template.json", "output": folder / "check.json"}
    check_tokenizer.main(argparse.Namespace(**places, **files))
    return json.loads((folder / "check.json").read_text())


@pytest.mark.parametrize(
    ("change", "texts", "first"),
    [
        (unchanged, HARD_TEXTS, None),
        (unchanged, ["fine", "cut \0 here"], ("195 'Ā'", "its end")),
        (digits_apart, ["Total: 10", "Total:  10"], ("263 'ĠĠ'", "227 'Ġ'")),
        (composing, ["café", "cafe\u0301"], ("134 'Ã'", "75 'e'")),
    ],
)
def test_rows_that_other_programs_read_otherwise_are_told_before_the_training(
    tiny_phi3, tmp_path, change, texts, first, capfd
):
    check = checked(base_with(tiny_phi3, tmp_path, change), tmp_path, texts)
    said = capfd.readouterr().err
    if first is None:
        trimmed = 3 * sum(text != text.strip() for text in texts)  # no value of a row begins or ends with a space
        none = {"differ": 0, "error": None, "examples": []}
        assert check == {"rows": 3 * len(texts), "asked_otherwise": trimmed, **none}
        assert f"own tokenizer reads all {3 * len(texts)} rows as the model was trained" in said
        return
    assert (check["rows"], check["differ"], check["error"]) == (6, 3, None)
    assert "own tokenizer reads 3 of 6 rows otherwise than the model was trained: predict.py does not use it" in said
    assert [(one["split"], one["line"]) for one in check["examples"]] == [("train", 2), ("validation", 2), ("test", 2)]
    assert (check["examples"][0]["trained"], check["examples"][0]["onnx"]) == first


@pytest.mark.parametrize(
    ("change", "config", "texts", "error"),
    [
        (unchanged, {"tokenizer_class": "OfAnotherLibrary"}, ["a"], r"Unsupported tokenizer class: OfAnotherLibrary$"),
        (with_split(r"(?<=a)b|."), {}, ["a"], r"Invalid regex.*"),
        (
            with_split("([a-z]|[0-9])+|."),
            {},
            ["a", "ab" * 100_000],
            "it crashes with SIGSEGV at line 2 of train.jsonl",
        ),
        (
            with_split("(x+x+)+y|."),
            {},
            ["xxy", "x" * 40],
            "it needs more than 1 s for a text at line 2 of train.jsonl",
        ),
    ],
)
def test_a_tokenizer_that_other_programs_cannot_read_is_a_verdict_and_no_error(
    tiny_phi3, tmp_path, change, config, texts, error, monkeypatch, capfd
):
    import check_tokenizer

    monkeypatch.setattr(check_tokenizer, "_ROW_SECONDS", 1)
    check = checked(base_with(tiny_phi3, tmp_path, change, **config), tmp_path, texts)
    assert (check["rows"], check["differ"], check["examples"]) == (3 * len(texts), None, [])
    assert re.match(error, check["error"])
    assert "own tokenizer cannot read this model's (" in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_the_check_reads_as_the_built_model_will(fp32, tiny_model, tmp_path):
    import check_tokenizer
    import onnxruntime_genai as og

    theirs = og.Tokenizer(og.Model(str(fp32)))
    with check_tokenizer.open_onnx_tokenizer(check_tokenizer.write_empty_model(str(tmp_path), tiny_model, "")) as found:
        texts = [*HARD_TEXTS, "cut \0 here"]
        assert found.encode(texts) == [theirs.encode(text).tolist() for text in texts]


def test_more_than_the_context_is_refused(phi3_fp32):
    from lib.onnx.runtime import Reader, load_onnx

    with pytest.raises(UserError, match="take 513 tokens, the model takes 512"):
        Reader(load_onnx(phi3_fp32, threads=1), 513)


# Measuring


def test_benchmark_measures_one_model_alone(run_script, phi3_fp32, phi3_corpus, tmp_path):
    before = {file.name: file.read_bytes() for file in phi3_fp32.iterdir()}
    run_script(
        "benchmark_onnx",
        *("--settings", {"benchmark": {"prompts": 3, "new_tokens": 5}, "versions": {}}),
        *("--model", phi3_fp32, "--rows", phi3_corpus / "rows.jsonl", "--output", tmp_path / "speed.json"),
        *("--threads", 1),
    )
    speed = json.loads((tmp_path / "speed.json").read_text())
    assert speed["size_mb"] == pytest.approx(manifest_of(phi3_fp32)["size_bytes"] / 1e6)
    assert (speed["prompts"], speed["new_tokens"], speed["threads"]) == (3, 5, 1)
    assert speed["load_s"] > 0
    for name in ("first_token_ms", "tokens_per_second"):
        low, high = speed["spread"][name]
        assert 0 < low <= speed[name] <= high
    assert 20 < speed["peak_rss_mb"] < 300  # torch alone takes more
    assert before == {file.name: file.read_bytes() for file in phi3_fp32.iterdir()}


def test_peak_memory_is_not_that_of_the_parent():
    inner = "from lib.hardware.memory import measure_peak_rss_mb; print(measure_peak_rss_mb())"
    outer = (
        "import os, sys; large = bytearray(b'1') * 600_000_000\n"
        f"os.execv(sys.executable, [sys.executable, '-c', {inner!r}])"
    )
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, cwd=SCRIPTS, check=True)
    assert float(done.stdout) < 300


@pytest.mark.parametrize("script", ["benchmark_onnx", "predict"])
def test_what_ships_needs_no_torch(script):
    code = f"import sys, {script}; print([name for name in ('torch', 'transformers', 'onnx') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPTS, check=True)
    assert done.stdout.strip() == "[]"


def test_threads_reach_onnx_runtime(phi3_fp32):
    code = (
        "import os; from pathlib import Path; from lib.onnx.runtime import load_onnx\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "kept = [count()]; models = []\n"
        "for threads in (1, 4):\n"
        f"    models.append(load_onnx(Path({str(phi3_fp32)!r}), threads)); kept.append(count())\n"
        "print(kept[2] - kept[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPTS, check=True)
    assert int(done.stdout) == 3
