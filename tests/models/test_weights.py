"""Weights that are not there, or are others': refused wherever a checkpoint or an adapter is read, with the cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.core.cli import UserError
from lib.models.loading import load_adapter, load_model
from lib.models.safetensors_streaming import stream_model
from support.adapters import merged, taught
from support.changed_models import Tensors, change, spoiled
from support.fetching import fetch_path, parameters

DOWN, HEAD, EMBED = "mlp.down_proj.weight", "lm_head.weight", "model.embed_tokens.weight"


def rename(function: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {function(name): tensor for name, tensor in tensors.items()}


def drop(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def add(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.ones(shape)}


def set_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def function(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return function


def longer(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor[:8]])


# Each: how a copy of the tiny Phi-3 is spoiled, and what the error must say: numbers, first names, cause.
SPOILED = {
    "compiled": (
        rename("_orig_mod.{}".format),
        ("15 missing (lm_head.weight first)", "15 foreign (_orig_mod.lm_head.weight first)", "torch.compile"),
    ),
    "data-parallel": (rename("module.{}".format), ("15 foreign (module.lm_head.weight first)", "DataParallel")),
    "sharded-wrapper": (
        rename(lambda name: name.replace("layers.", "_fsdp_wrapped_module.layers.")),
        ("12 missing (model.layers.0", "FSDP"),
    ),
    "unmerged": (
        rename(lambda name: name.replace("_proj.", "_proj.base_layer.")),
        ("8 missing (model.layers.0.mlp.down_proj.weight first)", "8 foreign", "a peft model that was not merged"),
    ),
    "lost-shard": (drop("layers.1."), ("6 missing (model.layers.1.input_layernorm.weight first)", "a part of it")),
    "lost-head": (drop(HEAD), ("1 missing (lm_head.weight first)", "tie_word_embeddings: true")),
    "misspelled": (
        rename(lambda name: name.replace("layers.1.mlp.down_proj", "layers.1.mlp.dwn_proj")),
        ("1 missing (model.layers.1.mlp.down_proj.weight first)", "1 foreign (model.layers.1.mlp.dwn_proj.weight"),
    ),
    "resized": (
        lambda tensors: change(HEAD, longer)(change(EMBED, longer)(tensors)),
        ("2 of another shape (lm_head.weight first: [1008, 64], in the model [1000, 64])", "resizing the vocabulary"),
    ),
    "zero-3": (
        change(DOWN, lambda tensor: torch.empty(0)),
        ("2 of another shape (model.layers.0.mlp.down_proj.weight first: [0], in the model [64, 128])", "ZeRO-3"),
    ),
    "value-head": (add("v_head.summary.weight", 1, 64), ("1 foreign (v_head.summary.weight first)", "value head")),
    "classifier": (
        lambda tensors: add("score.weight", 3, 64)(drop(HEAD)(tensors)),
        ("1 missing (lm_head.weight first), 1 foreign (score.weight first)", "of another kind"),
    ),
    "multimodal": (rename("language_model.{}".format), ("15 foreign (language_model.lm_head", "multimodal")),
    "nothing": (lambda tensors: {}, ("15 missing", "a part of it was lost")),
    "gptq": (
        rename(lambda name: name.replace("o_proj.weight", "o_proj.qweight")),
        ("2 foreign (model.layers.0.self_attn.o_proj.qweight first)", "its weights are quantized"),
    ),
}
# What a loader cannot tell from the names, and fetch_model can.
SPOILED_VALUES = {
    "8-bit": (
        change(DOWN, lambda tensor: tensor.to(torch.int8)),
        ("2 tensors are stored as I8, such as model.layers.0.mlp.down_proj.weight", "unquantized"),
    ),
    "nan": (change("model.norm.weight", set_first(float("nan"))), ("model.norm.weight holds numbers that are not",)),
    "infinite": (change(EMBED, set_first(float("-inf"))), ("model.embed_tokens.weight holds numbers that are not",)),
    "twice": (add("norm.weight", 64), ("model.norm.weight is stored twice, with and without model.",)),
}


@pytest.fixture(scope="module")
def count(tiny_phi3) -> int:
    return parameters(tiny_phi3)


def assert_refused(function: Callable[[], Any], place: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        function()
    line = str(caught.value)
    assert line.startswith(str(place))
    assert "\n" not in line
    assert ".partial" not in line
    assert len(line.replace(str(place), "")) < 500
    for word in words:
        assert word in line


@pytest.mark.parametrize("case", SPOILED | SPOILED_VALUES)
def test_a_checkpoint_that_is_not_whole_is_refused_before_anything_is_made(tiny_phi3, count, tmp_path, case):
    spoil, words = (SPOILED | SPOILED_VALUES)[case]
    model = spoiled(tiny_phi3, tmp_path / "model", spoil)
    assert_refused(lambda: fetch_path(model, tmp_path / "base", count), model, *words)
    assert not list(tmp_path.glob("base*"))


@pytest.mark.parametrize("load", [load_model, stream_model])
@pytest.mark.parametrize("case", SPOILED)
def test_a_checkpoint_that_is_not_whole_is_not_loaded(tiny_phi3, tmp_path, case, load):
    spoil, words = SPOILED[case]
    model = spoiled(tiny_phi3, tmp_path / "model", spoil)
    assert_refused(lambda: load(model), model, *words)


def test_loading_asks_for_each_tensor_also_where_the_base_is_quantized(tiny_phi3, tmp_path):
    model = spoiled(tiny_phi3, tmp_path / "model", SPOILED["compiled"][0])
    quantization = {"quant_type": "nf4", "double_quant": True}
    assert_refused(lambda: load_model(model, quantization=quantization), model, "15 missing")


def bare(tensors: Tensors) -> Tensors:
    """Names of the inner model, as its own class saves it."""
    return rename(lambda name: name.removeprefix("model."))(tensors)


@pytest.mark.parametrize("shards", [1, 2])
def test_names_without_the_prefix_of_the_model_are_written_in_full(tiny_llama, tmp_path, shards):
    """transformers loads both; merge and ONNX build find weights by their full names."""
    model = spoiled(tiny_llama, tmp_path / "model", bare)
    if shards == 2:
        tensors = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        for number, half in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
            part = {name: tensors[name] for name in half}
            save_file(part, model / f"model-{number:05}-of-00002.safetensors", metadata={"format": "pt"})
    manifest = fetch_path(model, tmp_path / "base", parameters(tiny_llama))
    assert sum(name.endswith(".safetensors") for name in manifest["files"]) == shards
    before, after = (load_model(folder).state_dict() for folder in (tiny_llama, tmp_path / "base"))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    taught(tiny_llama, tmp_path / "adapter", "lora")
    merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


def mixture(folder: Path, tokenizer: Path) -> Path:
    """A random mixture of experts, saved as the hub has them: each expert by itself."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "head_dim": 8}
    counts = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4}
    config = Qwen3MoeConfig(vocab_size=1000, num_experts_per_tok=2, eos_token_id=2, **sizes, **counts)
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


def test_what_transformers_itself_renames_and_joins_is_whole(tiny_llama, tmp_path):
    model = mixture(tmp_path / "mixture", tiny_llama)
    whole = parameters(model)
    assert any("experts.3.up_proj" in name for name in load_file(model / "model.safetensors"))
    fetch_path(model, tmp_path / "base", whole)
    load_model(tmp_path / "base")
    broken = spoiled(model, tmp_path / "broken", drop("experts.3.up_proj"))
    assert_refused(lambda: fetch_path(broken, tmp_path / "out", whole), broken, "cannot be put together")
    lost = spoiled(model, tmp_path / "lost", drop("experts.3."))
    assert_refused(lambda: fetch_path(lost, tmp_path / "out", whole), lost, "of another shape", "experts")


def test_buffers_that_older_versions_stored_are_passed_over(tiny_llama, tmp_path):
    model = spoiled(tiny_llama, tmp_path / "model", add("model.layers.0.self_attn.rotary_emb.inv_freq", 8))
    fetch_path(model, tmp_path / "base", parameters(tiny_llama))
    load_model(tmp_path / "base")
    stream_model(tmp_path / "base")


def test_an_index_does_not_lead_out_of_the_folder(tiny_phi3, count, tmp_path):
    model = shutil.copytree(tiny_phi3, tmp_path / "model")
    (model / "model.safetensors").rename(tmp_path / "outside.safetensors")
    save_file({"model.norm.weight": torch.ones(64)}, model / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(
        lambda: fetch_path(model, tmp_path / "base", count),
        model,
        "names the file '../outside.safetensors', which does not",
    )


# What a clone without Git LFS leaves

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c\nsize 12345\n"
)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_that_git_lfs_has_not_fetched_says_so(tiny_phi3, count, tmp_path, name):
    model = Path(shutil.copytree(tiny_phi3, tmp_path / "model"))
    (model / name).write_text(POINTER)
    expected = f"{name} is a git-lfs pointer, not the file itself; run git lfs pull"
    assert_refused(lambda: fetch_path(model, tmp_path / "base", count), model, expected)


def test_a_gguf_file_that_git_lfs_has_not_fetched_says_so(tmp_path):
    (tmp_path / "a.gguf").write_text(POINTER)
    assert_refused(lambda: fetch_path(tmp_path / "a.gguf", tmp_path / "base", 1), tmp_path / "a.gguf", "git lfs pull")


# Adapters


@pytest.fixture(scope="module")
def adapter(tiny_phi3, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    taught(tiny_phi3, folder, "lora")
    return folder


def changed_adapter(adapter: Path, folder: Path, function: Callable[[Tensors], Tensors]) -> Path:
    shutil.copytree(adapter, folder)
    save_file(function(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("layers.1.mlp.down_proj.lora_B"), ("1 missing", "layers.1.mlp.down_proj.lora_B")),
        (change("down_proj.lora_A.weight", lambda tensor: torch.empty(0)), ("layers.0.mlp.down_proj.lora_A",)),
        (add("base_model.model.model.layers.7.mlp.down_proj.lora_A.weight", 4, 128), ("1 foreign", "layers.7")),
    ],
    ids=["lost", "empty", "foreign"],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_adapter_that_is_not_whole_is_not_loaded(tiny_phi3, adapter, tmp_path, spoil, words, streamed):
    """peft leaves its start values in what a file lacks: B is zero there, and the layer does nothing."""
    mine = changed_adapter(adapter, tmp_path / "mine", spoil)
    load = stream_model if streamed else lambda base, path: load_adapter(load_model(base), path)
    load(tiny_phi3, adapter)
    assert_refused(lambda: load(tiny_phi3, mine), mine, *words)
