"""Every way to fine-tune: what it trains, and that its merge is what was trained."""

import copy
import json
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig

from lib.config.training import Finetune
from lib.core.files import read_json, write_json
from lib.models.loading import build_bitsandbytes_config, list_linear_weights, load_adapter, load_model
from lib.training.methods import METHODS, choose_quantization, find_title
from support.adapters import difference, merged, taught
from support.paths import SCRIPTS

ADAPTERS = [name for name, method in METHODS.items() if method.has_adapter]
QLORA = [("nf4", True), ("nf4", False), ("fp4", True)]


@pytest.mark.parametrize("method", [name for name in ADAPTERS if not METHODS[name].quantizes_base])
def test_the_merge_is_what_was_trained(tiny_model, tmp_path, method):
    """To float32 rounding; and the adapter itself is far from nothing."""
    model, _ = taught(tiny_model, tmp_path / "adapter", method)
    found = merged(tiny_model, tmp_path / "adapter", tmp_path / "merged")
    assert difference(model, found) < 2e-6
    assert difference(load_model(tiny_model), found) > 1e-2


@pytest.mark.parametrize(("quant_type", "double_quant"), QLORA)
def test_an_adapter_of_a_4_bit_base_merges_exactly_into_what_it_was_trained_on(
    tiny_model, tmp_path, quant_type, double_quant
):
    """The 4-bit model with its adapter equals the merge into the dequantized base, and not that into the original."""
    model, quantization = taught(
        tiny_model, tmp_path / "adapter", "qlora", quant_type=quant_type, double_quant=double_quant
    )
    assert difference(model, merged(tiny_model, tmp_path / "adapter", tmp_path / "dequantized", quantization)) < 2e-6
    original = merged(tiny_model, tmp_path / "adapter", tmp_path / "original")
    assert difference(model, original) > 1e-2
    assert difference(load_adapter(load_model(tiny_model), tmp_path / "adapter"), original) < 2e-6


@pytest.mark.parametrize(
    ("method", "spoil"),
    [
        ("lora", {"lora_alpha": 12}),
        ("rslora", {"use_rslora": False}),
        ("dora", {"lora_alpha": 12}),
    ],
)
def test_a_merge_by_another_rule_is_told_apart(tiny_model, tmp_path, method, spoil):
    """Negative control: what the parity tests allow is far below what a wrong scale gives."""
    model, _ = taught(tiny_model, tmp_path / "adapter", method)
    path = tmp_path / "adapter" / "adapter_config.json"
    write_json(path, read_json(path) | spoil)
    assert difference(model, merged(tiny_model, tmp_path / "adapter", tmp_path / "merged")) > 1e-3


def test_dora_without_its_lengths_is_told_apart(tiny_phi3, tmp_path):
    from lib.models.merging import add_low_rank

    generator = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(shape, generator=generator) for shape in ((6, 8), (2, 8), (6, 2)))
    lengths = torch.linspace(1, 2, 6)
    merged_weight = add_low_rank(weight, a, b, 0.5, lengths)
    assert torch.allclose(merged_weight.norm(dim=1), lengths)
    plain = add_low_rank(weight, a, b, 0.5)
    assert torch.allclose(merged_weight / merged_weight.norm(dim=1)[:, None], plain / plain.norm(dim=1)[:, None])
    assert not torch.allclose(merged_weight, plain)


def test_each_method_is_pefts_own(tiny_phi3, tmp_path):
    configs = {}
    for method in ADAPTERS:
        taught(tiny_phi3, tmp_path / method, method)
        configs[method] = read_json(tmp_path / method / "adapter_config.json")
    assert [method for method in configs if configs[method]["use_dora"]] == ["dora"]
    assert [method for method in configs if configs[method]["use_rslora"]] == ["rslora"]
    assert {find_title(configs[method]) for method in configs} == {"LoRA", "DoRA", "rsLoRA"}
    assert all(config["target_modules"] == sorted(config["target_modules"]) for config in configs.values())


@pytest.mark.parametrize(("quant_type", "double_quant"), QLORA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_4_bit_base_computes_what_bitsandbytes_layers_compute(tiny_model, quant_type, double_quant, dtype):
    """Here, on a CPU, layers hold what their 4 bits stand for; on a GPU they are bitsandbytes' own."""
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM

    quantization = {"quant_type": quant_type, "double_quant": double_quant}
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_model,
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=build_bitsandbytes_config(quantization, dtype),
    ).train()  # in evaluation some CPUs compute in bfloat16 whatever is asked
    ours = dict(load_model(tiny_model, dtype, quantization).named_modules())
    original = dict(load_model(tiny_model).named_parameters())
    layers = {name: part for name, part in theirs.named_modules() if isinstance(part, Linear4bit)}
    assert len(layers) == len(list_linear_weights(load_model(tiny_model)))
    assert not any("lm_head" in name for name in layers)
    for name, layer in layers.items():
        x = torch.eye(layer.in_features, dtype=dtype)
        assert layer.weight.dtype == torch.uint8
        assert torch.equal(layer(x), ours[name](x)), name
        change = (ours[name].weight.float() - original[f"{name}.weight"]).abs().max()
        assert 0.01 < change / original[f"{name}.weight"].abs().max() < 0.3
    assert torch.equal(ours["lm_head"].weight.float(), original[_head(original)].to(dtype).float())


def _head(weights: dict[str, Any]) -> str:
    return "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"  # tied


def test_the_merge_check_itself_knows_every_method(tiny_llama, tmp_path):
    """Artifact to artifact: a 4-bit base, both merges, and a manifest that says which."""
    import merge_adapter

    from lib.provenance.manifests import build_manifest_path, write_manifest
    from support.training import make_corpus

    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    for method in ("dora", "qlora"):
        _, quantization = taught(tiny_llama, tmp_path / method, method)
        write_manifest(
            tmp_path / method,
            inputs={"base": build_manifest_path(tiny_llama)},
            settings={},
            extra={"dtype": "float32", "quantization": quantization},
        )
        for into in ("original", "dequantized") if quantization else ("original",):
            merge_adapter.main(
                Namespace(
                    settings={"into": into, "versions": {}},
                    base=tiny_llama,
                    adapter=tmp_path / method,
                    rows=corpus / "validation.jsonl",
                    merged=tmp_path / f"{method}-{into}",
                    threads=1,
                )
            )
    changed = [
        read_json(tmp_path / f"qlora-{into}.manifest.json")["weights_changed"] for into in ("original", "dequantized")
    ]
    assert changed == [14, 14]


def test_weights_without_an_adapter_are_rounded_too(tiny_phi3, tmp_path):
    """A 4-bit base rounds every linear layer, whatever the adapter sits on."""
    model, quantization = taught(tiny_phi3, tmp_path / "adapter", "qlora", target_modules=["o_proj"])
    assert difference(model, merged(tiny_phi3, tmp_path / "adapter", tmp_path / "merged", quantization)) < 2e-6


def test_choosing_a_merge_goes_by_the_rows(tmp_path):
    """The better one on the same rows; of equals the one that the adapter was trained on."""
    from choose_merge import choose

    from lib.core.files import hash_file
    from lib.provenance.manifests import build_manifest_path, write_manifest

    def scored(kind: str, right: int) -> Path:
        folder = tmp_path / f"merged-{kind}"
        folder.mkdir(exist_ok=True)
        write_manifest(folder, inputs={}, settings={"kind": kind})
        rows = [
            {
                "id": str(number),
                "label": "ab"[number % 2],
                "predicted": "ab"[(number % 2) ^ (number >= right)],
                "log_probs": {"a": -1.0, "b": -2.0},
                "answer": None,
                "stopped": None,
            }
            for number in range(200)
        ]
        score = {"labels": ["a", "b"], "inputs": {"model": hash_file(build_manifest_path(folder))}}
        write_json(tmp_path / f"merged-{kind}.validation.json", score)
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"merged-{kind}.validation.predictions.jsonl").write_text(lines + "\n")
        return folder

    settings = {"task": "classification", "seed": 0, "metric": "accuracy", "evaluate": {"bootstrap_samples": 200}}
    for right, chosen, apart in ((150, "original", True), (100, "dequantized", False)):
        folders = {"original": scored("original", right), "dequantized": scored("dequantized", 100)}
        found = choose(tmp_path, folders, copy.deepcopy(settings))
        assert (found["chosen"], found["is_significant"]) == (chosen, apart)
        assert found["values"] == {"dequantized": 0.5, "original": right / 200}
        assert found["difference_ci95"][0] <= found["difference"] <= found["difference_ci95"][1]


def test_the_registry_the_configuration_and_peft_have_the_same_names():
    assert set(get_args(Finetune.model_fields["method"].annotation)) == METHODS.keys()
    peft = {field.name for field in fields(LoraConfig)}
    for method in METHODS.values():
        assert method.peft.keys() <= peft
        assert set(method.options) <= Finetune.model_fields.keys()
    chosen = {name for name in METHODS if choose_quantization(Finetune(method=name).model_dump())}
    assert chosen == {name for name, method in METHODS.items() if method.quantizes_base}


def test_a_method_is_named_nowhere_but_in_the_registry_and_at_its_key():
    files = [path for path in SCRIPTS.rglob("*.py") if path.parent.name != "olive"]  # its own names
    for path in files:
        named = {name for name in METHODS.keys() - {"none"} if f'"{name}"' in path.read_text(encoding="utf-8")}
        assert not named or path.name in ("methods.py", "training.py"), (path.name, named)
