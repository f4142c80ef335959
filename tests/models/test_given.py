"""Arriving with an adapter or a merged model: taken over as if made here, or refused in one line."""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.core.cli import UserError
from lib.core.files import read_json, write_json
from lib.models.loading import load_adapter, load_model
from lib.provenance.manifests import write_manifest
from support.adapters import difference, taught
from support.adapters import merged as merged_by_hand


def bring_adapter(path: Path, base: Path, out: Path, **settings: Any) -> None:
    import fetch_adapter

    settings = {"adapter": "mine", "quantization": None, "versions": {}} | settings
    fetch_adapter.main(argparse.Namespace(settings=settings, path=path, base=base, adapter=out))


def bring_merged(path: Path, base: Path, out: Path) -> None:
    import fetch_merged

    settings = {"merged": "mine", "versions": {}}
    fetch_merged.main(argparse.Namespace(settings=settings, path=path, base=base, merged=out))


def refusal(bring: Callable[..., None], path: Path, base: Path, tmp_path: Path) -> str:
    """The one line of a refusal, which names what was given; nothing stays behind."""
    with pytest.raises(UserError) as caught:
        bring(path, base, tmp_path / "out" / "brought")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))
    return str(caught.value)


@pytest.fixture(scope="module")
def adapters(tiny_llama, tmp_path_factory) -> dict[str, Path]:
    """Adapters as peft's own `save_pretrained` writes them, by method."""
    folder = tmp_path_factory.mktemp("adapters")
    for method in ("lora", "dora", "rslora"):
        model, _ = taught(tiny_llama, folder / "saved" / method, method)
        model.save_pretrained(folder / method)
    return {method: folder / method for method in ("lora", "dora", "rslora")}


@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_an_adapter_is_taken_over_as_one_that_was_trained_here(tiny_llama, adapters, tmp_path, method):
    bring_adapter(adapters[method], tiny_llama, tmp_path / "adapter")
    saved = adapters[method].parent / "saved" / method
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / name).read_bytes() == (saved / name).read_bytes()
    manifest = read_json(tmp_path / "adapter.manifest.json")
    assert manifest["quantization"] is None
    assert len(manifest["files"]) == 2
    merged_by_hand(tiny_llama, tmp_path / "adapter", tmp_path / "merged")


def test_how_the_base_was_quantized_is_passed_on(tiny_llama, adapters, tmp_path):
    quantization = {"quant_type": "nf4", "double_quant": True}
    bring_adapter(adapters["lora"], tiny_llama, tmp_path / "adapter", quantization=quantization)
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


def _renamed(old: str, new: str):
    def change(parts: dict[str, torch.Tensor]) -> None:
        for name in list(parts):
            parts[name.replace(old, new)] = parts.pop(name)

    return _weights(change)


def _empty(parts: dict[str, torch.Tensor]) -> None:
    parts.update({name: torch.empty(0) for name in parts})


def _cast(parts: dict[str, torch.Tensor]) -> None:
    parts[min(parts)] = parts[min(parts)].to(torch.int8)


def _untrained(parts: dict[str, torch.Tensor]) -> None:
    parts.update({name: torch.zeros_like(part) for name, part in parts.items() if "lora_B" in name})


def _lose_a_layer(parts: dict[str, torch.Tensor]) -> None:
    for name in [name for name in parts if "layers.1.mlp.down_proj" in name]:
        parts.pop(name)


def _half_a_file(folder: Path) -> None:
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[: len(content) // 2])


POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c\nsize 12345\n"
)
MERGE = "merge it with peft, then give finetune.merged"
FAULTS = [
    (_pickled, "adapter_model.bin can run code: save it as safetensors"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "it has no adapter_config.json"),
    (
        lambda folder: (folder / "adapter_model.safetensors").write_text(POINTER),
        "adapter_model.safetensors is a git-lfs pointer, not the file itself; run git lfs pull",
    ),
    (_half_a_file, "adapter_model.safetensors is not a whole safetensors file"),
    (_configured(peft_type="PREFIX_TUNING"), "it is a PREFIX_TUNING adapter"),
    (_configured(task_type="SEQ_CLS"), "it was trained for SEQ_CLS"),
    (_configured(use_dora=True), "use_dora and its weights do not agree"),
    (
        _configured(r=8),
        "its adapter_config.json says r 8, base_model.model.model.layers.0.mlp.down_proj.lora_A.weight has",
    ),
    (_configured(r=None), "its adapter_config.json names no r"),
    (_configured(r="4"), "its r or lora_alpha is not a number ('4', 6.0)"),
    (_configured(target_modules=["q_proj", "down_proj"], layers_to_transform=[0]), "24 foreign"),
    (_configured(target_modules=["nothing"]), "peft cannot put it on the base model: Target modules {'nothing'}"),
    (_weights(_spoil), "not finite"),
    (_weights(_empty), "28 of its 28 tensors are empty, such as base_model.model.model.layers.0.mlp.down_proj.lora_A"),
    (_weights(_cast), "is stored as I8"),
    (_weights(_untrained), "it has no effect: one matrix of each pair is zero"),
    (_weights(_lose_a_layer), "2 missing (base_model.model.model.layers.1.mlp.down_proj.lora_A.weight first)"),
    (_weights(lambda parts: parts.pop(min(parts))), f"which is not a low-rank matrix; {MERGE}"),
    (_weights(lambda parts: parts.update({"lm_head.weight": torch.zeros(1)})), "it holds lm_head.weight"),
    (_renamed("model.layers", "_orig_mod.model.layers"), "torch.compile renamed it"),
    (_renamed("base_model", "module.base_model"), "DataParallel renamed it"),
    (_renamed(".weight", ".default.weight"), "the adapter's own name is in it: save it with save_pretrained"),
]


@pytest.mark.parametrize(("spoil", "expected"), FAULTS, ids=[expected for _, expected in FAULTS])
def test_an_adapter_that_cannot_be_merged_is_one_line(tiny_llama, adapters, tmp_path, spoil, expected):
    mine = Path(shutil.copytree(adapters["lora"], tmp_path / "mine"))
    spoil(mine)
    assert expected in refusal(bring_adapter, mine, tiny_llama, tmp_path)


def test_empty_tensors_are_told_as_what_they_are(tiny_llama, adapters, tmp_path):
    mine = Path(shutil.copytree(adapters["lora"], tmp_path / "mine"))
    _weights(_empty)(mine)
    assert "saving while ZeRO-3 shards the model" in refusal(bring_adapter, mine, tiny_llama, tmp_path)


# A value of each field of LoraConfig that changes what is computed, or what the adapter was trained on.
REFUSED_FIELDS = {
    "alora_invocation_tokens": [3, 4],
    "alpha_pattern": {"q_proj": 8},
    "arrow_config": {"top_k": 1},
    "bias": "all",
    "ensure_weight_tying": True,
    "fan_in_fan_out": True,
    "init_lora_weights": "pissa",
    "kasa_config": {"beta": 0.1},
    "layer_replication": [[0, 1], [0, 1]],
    "lora_bias": True,
    "megatron_config": {"a": 1},
    "modules_to_save": ["lm_head"],
    "monteclora_config": {"num_samples": 2},
    "rank_pattern": {"q_proj": 8},
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": [1],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "velora_config": {"scale": 1.0},
}


def test_each_field_of_an_adapters_configuration_is_decided_upon():
    """A field that a new version of peft adds is refused until somebody has looked at it, and stands here or there."""
    from fetch_adapter import ALLOWED
    from peft import LoraConfig

    assert {field.name for field in dataclasses.fields(LoraConfig)} == REFUSED_FIELDS.keys() | set(ALLOWED)


@pytest.mark.parametrize("field", [*REFUSED_FIELDS, "of_a_newer_peft"])
def test_an_adapter_that_computes_something_else_is_refused_by_the_name_of_it(tiny_llama, adapters, tmp_path, field):
    mine = Path(shutil.copytree(adapters["lora"], tmp_path / "mine"))
    _configured(**{field: REFUSED_FIELDS.get(field, 16)})(mine)
    line = refusal(bring_adapter, mine, tiny_llama, tmp_path)
    assert f"its {field} is " in line
    assert "merged" in line


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "PiSSA", "of_2027"])
def test_an_adapter_that_changed_its_base_is_refused_by_the_name_of_its_method(tiny_llama, adapters, tmp_path, init):
    mine = Path(shutil.copytree(adapters["lora"], tmp_path / "mine"))
    _configured(init_lora_weights=init)(mine)
    expected = f"its init_lora_weights is '{init}', which changes the base model's weights; {MERGE}"
    assert expected in refusal(bring_adapter, mine, tiny_llama, tmp_path)


def taught_by_peft(base: Path, folder: Path, **options: Any) -> Any:
    """A model with an adapter that peft made with these options, moved a little, and saved."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    options = {"target_modules": ["q_proj", "o_proj", "down_proj"], "r": 4, "lora_alpha": 6} | options
    model = get_peft_model(load_model(base), LoraConfig(task_type="CAUSAL_LM", **options))
    for name, part in model.named_parameters():
        if "lora_" in name and part.requires_grad:
            part.data += 0.05 * torch.randn_like(part)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        *({"init_lora_weights": init} for init in (False, "gaussian", "eva", "orthogonal", "mica")),
        {"layers_to_transform": [1]},
        {"exclude_modules": ["down_proj"]},
        {"target_modules": r".*\.(q_proj|down_proj)"},
        {"use_dora": True, "use_rslora": True},
    ],
    ids=str,
)
def test_what_leaves_the_base_alone_is_taken_and_merged_exactly(tiny_llama, tmp_path, options):
    """The merge is what peft trained; and an init that is allowed does leave the base weights as they are."""
    model = taught_by_peft(tiny_llama, tmp_path / "mine", **options)
    bring_adapter(tmp_path / "mine", tiny_llama, tmp_path / "adapter")
    found = merged_by_hand(tiny_llama, tmp_path / "adapter", tmp_path / "merged")
    assert difference(model, found) < 2e-6
    assert difference(model, load_adapter(load_model(tiny_llama), tmp_path / "adapter")) < 2e-6
    assert difference(load_model(tiny_llama), found) > 1e-2


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_changes_the_base_would_be_merged_wrongly(tiny_llama, tmp_path, init):
    """Negative control: the refusal is needed."""
    model = taught_by_peft(tiny_llama, tmp_path / "mine", init_lora_weights=init)
    _configured(init_lora_weights=True)(tmp_path / "mine")
    assert difference(model, merged_by_hand(tiny_llama, tmp_path / "mine", tmp_path / "merged")) > 1e-2


def test_an_adapter_on_a_tied_head_says_that_peft_merges_it_wrongly(tiny_llama, tmp_path):
    taught_by_peft(tiny_llama, tmp_path / "mine", target_modules=["lm_head"])
    assert "train it without lm_head" in refusal(bring_adapter, tmp_path / "mine", tiny_llama, tmp_path)


def test_an_adapter_of_another_base_is_refused(tiny_phi3, adapters, tmp_path):
    line = refusal(bring_adapter, adapters["lora"], tiny_phi3, tmp_path)
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


def test_a_merged_model_is_taken_over_with_its_weights(tiny_llama, finetuned, tmp_path):
    bring_merged(finetuned, tiny_llama, tmp_path / "merged")
    mine, theirs = (dict(load_model(path).named_parameters()) for path in (tmp_path / "merged", finetuned))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    manifest = read_json(tmp_path / "merged.manifest.json")
    assert manifest["weights_changed"] == 14
    assert {"generation_config.json", "tokenizer.json", "config.json"} <= manifest["files"].keys()
    assert not (tmp_path / "merged" / "model.safetensors").samefile(finetuned / "model.safetensors")


def with_config(model: Path, folder: Path, **values: Any) -> Path:
    """A copy with keys of its config.json set; None takes a key out."""
    shutil.copytree(model, folder)
    config = read_json(folder / "config.json") | values
    write_json(folder / "config.json", {key: value for key, value in config.items() if value is not None})
    return folder


def test_a_merged_model_of_another_shape_is_refused(tiny_llama, tiny_phi3, tmp_path):
    assert "its model_type is phi3, the base model's llama" in refusal(bring_merged, tiny_phi3, tiny_llama, tmp_path)
    mine = with_config(tiny_llama, tmp_path / "mine", num_attention_heads=2)
    line = refusal(bring_merged, mine, tiny_llama, tmp_path)
    assert "its num_attention_heads is 2, the base model's 4; name the base model that it was made from" in line


def tuned(model: Path, folder: Path) -> Path:
    """A copy with one weight changed."""
    shutil.copytree(model, folder)
    parts = load_file(folder / "model.safetensors")
    parts["model.norm.weight"] *= 2
    save_file(parts, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("older", ["base", "merged"])
def test_a_configuration_that_leaves_out_defaults_is_the_same_one(tiny_llama, finetuned, tmp_path, older):
    """Files from before a key existed lack it, and the classes know its default."""
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    config = LlamaConfig.from_pretrained(tiny_llama, num_key_value_heads=4, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(base)
    pair = {"base": base, "merged": base}
    pair[older] = with_config(base, tmp_path / "older", num_key_value_heads=None, tie_word_embeddings=None)
    write_manifest(pair["base"], inputs={}, settings={})
    assert "all its weights are the base model's; save what merge_and_unload returns" in refusal(
        bring_merged, pair["merged"], pair["base"], tmp_path
    )
    mine = tuned(pair["merged"], tmp_path / "tuned")
    bring_merged(mine, pair["base"], tmp_path / "brought")
    assert read_json(tmp_path / "brought.manifest.json")["weights_changed"] == 1


def test_a_merged_model_with_another_tokenizer_is_refused(tiny_llama, finetuned, tmp_path):
    mine = Path(shutil.copytree(finetuned, tmp_path / "mine"))
    tokenizer = json.loads((mine / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (mine / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "its tokenizer reads" in refusal(bring_merged, mine, tiny_llama, tmp_path)


def test_a_merged_model_that_is_broken_or_pickled_is_refused(tiny_llama, finetuned, tmp_path):
    mine = Path(shutil.copytree(finetuned, tmp_path / "mine"))
    whole = load_file(mine / "model.safetensors")
    for spoil, expected in (
        (lambda name, part: part / 0 if name == "model.norm.weight" else part, "model.norm.weight holds numbers that"),
        (lambda name, part: part.to(torch.int8) if "o_proj" in name else part, "2 tensors are stored as I8, such as"),
        (lambda name, part: part[:0] if "o_proj" in name else part, "2 of another shape (model.layers.0.self_attn.o"),
    ):
        parts = {name: spoil(name, part).clone() for name, part in whole.items()}
        save_file(parts, mine / "model.safetensors", metadata={"format": "pt"})
        assert expected in refusal(bring_merged, mine, tiny_llama, tmp_path)
    parts = {f"_orig_mod.{name}": part for name, part in whole.items()}
    save_file(parts, mine / "model.safetensors", metadata={"format": "pt"})
    assert "20 foreign (_orig_mod.model.embed_tokens.weight" in refusal(bring_merged, mine, tiny_llama, tmp_path)
    (mine / "model.safetensors").write_text(POINTER)
    assert "model.safetensors is a git-lfs pointer" in refusal(bring_merged, mine, tiny_llama, tmp_path)
    (mine / "model.safetensors").rename(mine / "pytorch_model.bin")
    assert "its weights are only in pytorch_model.bin" in refusal(bring_merged, mine, tiny_llama, tmp_path)
