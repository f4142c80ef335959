"""Arriving with an adapter or a merged model: taken over as if made here, or refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_methods import merged as merged_by_hand
from test_methods import taught

from lib.checkpoints import load_model
from lib.files import read_json, write_json

ADAPTER = {"adapter": "mine", "quantization": None, "versions": {}}


def bring_adapter(run_script, path: Path, base: Path, out: Path, check: bool = True, **settings: Any):
    words = ["--settings", ADAPTER | settings, "--path", path, "--base", base, "--adapter", out]
    return run_script("fetch_adapter", *words, check=check)


def bring_merged(run_script, path: Path, base: Path, out: Path, check: bool = True):
    words = ["--settings", {"merged": "mine", "versions": {}}, "--path", path, "--base", base, "--merged", out]
    return run_script("fetch_merged", *words, check=check)


def refusal(done, out: Path) -> str:
    """The one line of a refusal; nothing stays behind."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert not list(out.parent.glob(f"{out.name}*"))
    return lines[0]


@pytest.fixture(scope="module")
def adapters(tiny_llama, tmp_path_factory) -> dict[str, Path]:
    """Adapters as peft's own `save_pretrained` writes them, by method."""
    folder = tmp_path_factory.mktemp("adapters")
    for method in ("lora", "dora", "rslora"):
        model, _ = taught(tiny_llama, folder / "saved" / method, method)
        model.save_pretrained(folder / method)
    return {method: folder / method for method in ("lora", "dora", "rslora")}


@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_an_adapter_is_taken_over_as_one_that_was_trained_here(run_script, tiny_llama, adapters, tmp_path, method):
    bring_adapter(run_script, adapters[method], tiny_llama, tmp_path / "adapter")
    saved = adapters[method].parent / "saved" / method
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / name).read_bytes() == (saved / name).read_bytes()
    manifest = read_json(tmp_path / "adapter.manifest.json")
    assert manifest["quantization"] is None
    assert len(manifest["files"]) == 2
    merged_by_hand(tiny_llama, tmp_path / "adapter", tmp_path / "merged")


def test_how_the_base_was_quantized_is_passed_on(run_script, tiny_llama, adapters, tmp_path):
    quantization = {"quant_type": "nf4", "double_quant": True}
    bring_adapter(run_script, adapters["lora"], tiny_llama, tmp_path / "adapter", quantization=quantization)
    assert read_json(tmp_path / "adapter.manifest.json")["quantization"] == quantization


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _configured(**values: Any):
    def change(folder: Path) -> None:
        write_json(folder / "adapter_config.json", read_json(folder / "adapter_config.json") | values)

    return change


def _weights(function):
    def change(folder: Path) -> None:
        parts = load_file(folder / "adapter_model.safetensors")
        function(parts)
        save_file(parts, folder / "adapter_model.safetensors")

    return change


def _spoil(parts: dict[str, torch.Tensor]) -> None:
    parts[min(parts)][0, 0] = float("nan")


FAULTS = [
    (_pickled, "adapter_model.bin can run code: save it as safetensors"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "it has no adapter_config.json"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "not JSON"),
    (_configured(peft_type="PREFIX_TUNING"), "it is a PREFIX_TUNING adapter"),
    (_configured(modules_to_save=["lm_head"]), "its modules_to_save is"),
    (_configured(bias="all"), "its bias is 'all'"),
    (_configured(rank_pattern={"q_proj": 8}), "its rank_pattern is"),
    (_configured(use_dora=True), "use_dora and its weights do not agree"),
    (_configured(r=8), "the base model asks for [8,"),
    (_configured(r=None), "its adapter_config.json names no r"),
    (_configured(lora_bias=True), "its lora_bias is True"),
    (_weights(_spoil), "not finite"),
    (_weights(lambda parts: parts.pop(min(parts))), "which is no low-rank matrix"),
    (_weights(lambda parts: parts.update({"lm_head.weight": torch.zeros(1)})), "it holds lm_head.weight"),
]


@pytest.mark.parametrize(("spoil", "expected"), FAULTS, ids=[expected for _, expected in FAULTS])
def test_an_adapter_that_cannot_be_merged_is_one_line(run_script, tiny_llama, adapters, tmp_path, spoil, expected):
    mine = shutil.copytree(adapters["lora"], tmp_path / "mine")
    spoil(mine)
    out = tmp_path / "out" / "adapter"
    line = refusal(bring_adapter(run_script, mine, tiny_llama, out, check=False), out)
    assert expected in line
    assert str(mine) in line


def test_an_adapter_of_another_base_is_refused(run_script, tiny_phi3, adapters, tmp_path):
    out = tmp_path / "out" / "adapter"
    line = refusal(bring_adapter(run_script, adapters["lora"], tiny_phi3, out, check=False), out)
    assert "is not in the base model; name the base model that it was trained on" in line


# A merged model


@pytest.fixture(scope="module")
def finetuned(tiny_llama, tmp_path_factory) -> Path:
    """A merged model as transformers saves it."""
    folder = tmp_path_factory.mktemp("finetuned")
    taught(tiny_llama, folder / "adapter", "lora")
    merged_by_hand(tiny_llama, folder / "adapter", folder / "merged").save_pretrained(folder / "mine")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_llama / name, folder / "mine" / name)
    return folder / "mine"


def test_a_merged_model_is_taken_over_with_its_weights(run_script, tiny_llama, finetuned, tmp_path):
    bring_merged(run_script, finetuned, tiny_llama, tmp_path / "merged")
    mine, theirs = (dict(load_model(path).named_parameters()) for path in (tmp_path / "merged", finetuned))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    manifest = read_json(tmp_path / "merged.manifest.json")
    assert manifest["weights_changed"] == 14
    assert {"generation_config.json", "tokenizer.json", "config.json"} <= manifest["files"].keys()
    assert not (tmp_path / "merged" / "model.safetensors").samefile(finetuned / "model.safetensors")


def test_a_merged_model_of_another_shape_is_refused(run_script, tiny_llama, tiny_phi3, tmp_path):
    out = tmp_path / "out" / "merged"
    assert "parameters" in refusal(bring_merged(run_script, tiny_phi3, tiny_llama, out, check=False), out)
    mine = shutil.copytree(tiny_llama, tmp_path / "mine")
    write_json(mine / "config.json", read_json(mine / "config.json") | {"num_attention_heads": 2})
    line = refusal(bring_merged(run_script, mine, tiny_llama, out, check=False), out)
    assert "its num_attention_heads is 2, the base model's 4; name the base model that it was made from" in line


def test_a_merged_model_with_another_tokenizer_is_refused(run_script, tiny_llama, finetuned, tmp_path):
    mine, out = shutil.copytree(finetuned, tmp_path / "mine"), tmp_path / "out" / "merged"
    tokenizer = json.loads((mine / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (mine / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "its tokenizer reads" in refusal(bring_merged(run_script, mine, tiny_llama, out, check=False), out)


def test_a_merged_model_that_is_broken_or_pickled_is_refused(run_script, tiny_llama, finetuned, tmp_path):
    mine, out = shutil.copytree(finetuned, tmp_path / "mine"), tmp_path / "out" / "merged"
    parts = load_file(mine / "model.safetensors")
    parts["model.norm.weight"][0] = float("inf")
    save_file(parts, mine / "model.safetensors", metadata={"format": "pt"})
    line = refusal(bring_merged(run_script, mine, tiny_llama, out, check=False), out)
    assert "model.norm.weight holds numbers that are not finite" in line
    (mine / "model.safetensors").rename(mine / "pytorch_model.bin")
    line = refusal(bring_merged(run_script, mine, tiny_llama, out, check=False), out)
    assert "its weights are only in pytorch_model.bin" in line
