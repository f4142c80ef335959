"""Public recipes of Microsoft Olive, written anew: each becomes a valid configuration with the values that it had."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lib.config.loader import load_config
from lib.core.cli import UserError
from lib.olive.convert import convert_document
from lib.olive.document import collect_blocks, read_document
from lib.olive.render import render_config
from support.paths import ROOT

RECIPES = Path(__file__).parent / "recipes"
TINY_CODES = {
    "data.target": "response",
    "data.hub.id": "nampdn-ai/tiny-codes",
    "data.hub.split": "train",
    "corpus.text_template": "### Question: {prompt} \n### Answer: {response}",
    "task": "generation",
    "finetune.loss": "all",
    "finetune.corpus_strategy": "join",
    "finetune.source_max_len": 1024,
}
# What Olive 0.6 sets where a file is silent.
OLD = {"finetune.r": 64, "finetune.lora_alpha": 16, "finetune.learning_rate": 2e-4, "seed": 42}
EIGHT = {"finetune.per_device_train_batch_size": 8, "finetune.max_steps": 500, "finetune.eval_steps": 100}
PHI3 = {"base_model.hub.id": "microsoft/Phi-3-mini-4k-instruct", "base_model.parameters": 3821079552}
EXPECTED: dict[str, tuple[str, dict[str, Any]]] = {
    "open_llama_lora": (
        "microsoft/Olive examples/open_llama/open_llama_lora_tinycodes.json @ 00c338d7",
        {**TINY_CODES, **OLD, **EIGHT, "finetune.method": "lora", "finetune.target_modules": "all-linear",
         "base_model.hub.id": "openlm-research/open_llama_7b_v2", "base_model.parameters": 7_000_000_000,
         "finetune.gradient_checkpointing": True, "finetune.group_by_length": True, "finetune.lora_dropout": 0.1,
         "finetune.metric_for_best_model": "loss", "finetune.lr_scheduler_type": "constant",
         "results": "results-open_llama_lora_tinycodes"},
    ),
    "open_llama_qlora_ort": (
        "microsoft/Olive examples/open_llama/open_llama_qlora_ort_tinycodes.json @ 00c338d7",
        {**TINY_CODES, **OLD, "finetune.method": "qlora", "finetune.gradient_accumulation_steps": 16,
         "finetune.gradient_checkpointing": False, "finetune.double_quant": False, "finetune.max_steps": 1500},
    ),
    "open_llama_loftq": (
        "microsoft/Olive examples/open_llama/open_llama_loftq_tinycodes.json @ 00c338d7",
        {**TINY_CODES, **OLD, "finetune.method": "qlora", "finetune.per_device_eval_batch_size": 16},
    ),
    "phi_1_5_qlora": (
        "microsoft/Olive examples/open_llama/phi_qlora_tinycodes.json @ ddcffdd8",
        {**TINY_CODES, "finetune.dtype": "bfloat16", "finetune.double_quant": True, "finetune.data_seed": 42, "seed": 0,
         "finetune.eval_steps": 100, "finetune.logging_steps": 10, "base_model.hub.id": "microsoft/phi-1_5"},
    ),
    "llama_guanaco_qlora": (
        "microsoft/Olive examples/open_llama/llama_qlora.json @ 0fe44791",
        {"data.hub.id": "timdettmers/openassistant-guanaco", "corpus.max_length": 512, "corpus.truncation": "right",
         "finetune.corpus_strategy": "rows", "finetune.loss": "all", "finetune.max_steps": 1875, "finetune.r": 64,
         "corpus.text_template": "{question}\n{answer}", "data.target": "answer", "finetune.eval_steps": 187},
    ),
    "llama2_qlora": (
        "microsoft/Olive examples/llama2/llama2_qlora.json @ 064e9a60",
        {**TINY_CODES, **OLD, "finetune.max_steps": 150, "finetune.eval_steps": 50, "variants": {"int4": {"precision": "int4"}}},
    ),
    "llama2_azure": (
        "microsoft/Olive examples/llama2/notebook/llama2/config.json @ 076e792f",
        {**TINY_CODES, **OLD, "base_model.source": "azureml://registries/azureml-meta/models/Llama-2-7b/versions/13",
         "finetune.per_device_train_batch_size": 2, "finetune.max_steps": 100},
    ),
    "phi3_qlora_cpu": (
        "microsoft/Olive examples/phi3/phi3_qlora_cpu.json @ 3d723fda",
        {**TINY_CODES, **OLD, **PHI3, "variants": {"int4": {"precision": "int4"}}, "finetune.max_steps": 150},
    ),
    "phi3_classification": (
        "microsoft/Olive examples/phi3/phi3_classification.json @ 2af3c87c",
        {**PHI3, **OLD, "task": "classification", "data.target": "tone", "split.validation": 0.3, "split.test": 0.15,
         "data.files": ["models/dataset-classification.json"], "finetune.eval_steps": 100, "finetune.source_max_len": 1024},
    ),
    "phi3_deepspeed": (
        "microsoft/Olive examples/phi3/deepspeed_test/finetune.json @ c151f54b",
        {**PHI3, "split.validation": 0.3, "finetune.method": "qlora", "finetune.lora_dropout": 0.05, "finetune.eval_steps": 50,
         "finetune.gradient_accumulation_steps": 1, "finetune.lora_alpha": 16, "task": "classification"},
    ),
    "phi3_sources_azure": (
        "microsoft/Phi-3CookBook translations/tw/md/06.E2ESamples/E2E_LoRA&QLoRA_Config_With_Olive.md, LoRA",
        {**PHI3, "data.source": "azureml://datastores/workspaceblobstore/paths/rows.json", "data.target": "SOURCE",
         "finetune.max_steps": 100, "finetune.eval_steps": 100, "finetune.target_modules": ["o_proj", "qkv_proj"],
         "variants": {"int4-cuda": {"precision": "int4", "execution_provider": "cuda"}, "int4": {"precision": "int4"}}},
    ),
    "phi3_pass_configs": (
        "microsoft/Olive examples/phi3/pass_configs/finetune.json @ 31bbe8c0",
        {"finetune.method": "lora", "finetune.r": 64, "finetune.lora_alpha": 64, "finetune.max_steps": 10, "seed": 0},
    ),
    "cli_finetune": (
        "what `olive finetune` of Olive 0.13 writes for the example of docs/source/features/lora.md",
        {"finetune.r": 64, "finetune.lora_alpha": 16, "finetune.target_modules": ["q_proj", "v_proj"], "seed": 42,
         "finetune.lora_dropout": 0.05, "finetune.logging_steps": 50, "base_model.hub.id": "meta-llama/Llama-3.2-1B-Instruct",
         "base_model.parameters": 1_000_000_000, "finetune.per_device_train_batch_size": 16, "data.target": "response"},
    ),
}  # fmt: skip


def look_up(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values


def convert(values: Any, **options: Any):
    return convert_document(collect_blocks(values, "olive.json"), "olive.json", **options)


def load_recipe(name: str) -> Any:
    return json.loads((RECIPES / f"{name}.json").read_text())


def test_every_recipe_is_expected():
    assert {path.stem for path in RECIPES.glob("*.json")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_public_recipe_keeps_its_settings(name):
    found = convert_document(read_document(RECIPES / f"{name}.json"), name)
    config, written = found.config.model_dump(mode="json"), yaml.safe_load(found.text)
    for path, value in EXPECTED[name][1].items():
        assert look_up(written if path == "variants" else config, path) == value, path
    assert found.has_training
    assert max(map(len, found.text.splitlines())) < 200


# The recipe that slmflow replaces, block by block as its page shows it.
SEED = RECIPES / "seed"  # microsoft/PhiCookBook md/03.FineTuning/FineTuning_MicrosoftOlive.md
BLOCKS: dict[str, tuple[bool, dict[str, Any]]] = {
    "data_local": (False, {"data.files": ["dataset/dataset-classification.json"], "data.target": "tone",
                           "corpus.text_template": "### Text: {phrase}\n### The tone is:\n{tone}",
                           "corpus.max_length": 2048, "finetune.source_max_len": 2048}),
    "data_azure": (False, {"data.target": "Best Answer", "task": "generation",
                           "data.source": "azureml://datastores/workspaceblobstore/paths/rows.json",
                           "corpus.text_template": "<|user|>\n{Question}<|end|>\n<|assistant|>\n{Best Answer}\n<|end|>"}),
    "systems": (False, {}),
    "model_local": (False, {"base_model.path": "model-cache/microsoft/phi-3-mini"}),
    "model_registry": (False, {"base_model.parameters": 3821079552, "base_model.asset_type": "mlflow_model",
                               "base_model.source": "azureml://registries/azureml-msr/models/Phi-3-mini-4k-instruct/versions/11"}),
    "lora": (True, {"finetune.r": 64, "finetune.max_steps": 10, "split.validation": 0.3, "seed": 0}),
    "merge_and_build": (False, {"finetune.method": "none", "variants.int4.precision": "int4"}),
    "engine": (False, {"results": "results-phi3-finetuned"}),
}  # fmt: skip


def read_blocks(*names: str) -> Any:
    """Return blocks as one configuration; passes stand under `passes`, as the page says."""
    values: dict[str, Any] = {}
    for name in names:
        block = json.loads("{" + (SEED / f"{name}.json").read_text().strip().rstrip(",") + "}")
        values.setdefault("passes", {}).update(block) if name in ("lora", "merge_and_build") else values.update(block)
    return values


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_of_the_seed_is_converted_as_it_stands_on_the_page(name):
    found = convert_document(read_document(SEED / f"{name}.json"), name)
    config = found.config.model_dump(mode="json")
    has_training, expected = BLOCKS[name]
    assert found.has_training == has_training
    for path, value in expected.items():
        assert look_up(config, path) == value, path
    assert {path.stem for path in SEED.iterdir()} == BLOCKS.keys()


def test_what_belongs_to_a_profile_is_told_by_the_profiles_own_names():
    text = convert(read_blocks("systems", "data_azure")).text
    profile = yaml.safe_load((ROOT / "profiles/azureml/profile.yaml").read_text())
    told = {line[2:].partition(":")[0] for line in text.splitlines() if line.startswith("# azureml-")}
    assert told == {"azureml-subscription-id", "azureml-resource-group", "azureml-workspace", "azureml-image", "azureml-conda-file"}  # fmt: skip
    assert told <= profile.keys()
    assert "# set-resources: {train_adapter: {azureml_compute: \"'Your" in text
    assert "azureml_compute" in profile["set-resources"]["train_adapter"]
    assert "SLMFLOW_HF_TOKEN_SECRET=https://VAULT.vault.azure.net/" in text


def test_the_whole_seed_trains_as_the_example_that_was_written_by_hand():
    """examples/phi3-mini.yaml is the same recipe; it names labels and a revision, and its split is another one."""
    found = convert(read_blocks("data_local", "model_local", "lora", "merge_and_build", "engine", "systems"))
    example = load_config(yaml.safe_load((ROOT / "examples/phi3-mini.yaml").read_text()), [])
    assert found.config.finetune == example.finetune
    assert found.config.corpus == example.corpus
    assert (found.config.task, found.config.seed) == (example.task, example.seed)
    assert {name: one.execution_provider for name, one in found.config.variants.items()} == {"int4-cuda": "cuda", "int4": "cpu"}  # fmt: skip


def test_the_recipes_of_the_benchmark_train_as_its_own_side_does():
    """benchmarks/olive.md compares tuned.json with examples/tones.yaml: they differ in what the page says, and no more."""
    tuned = convert_document(read_document(ROOT / "benchmarks/olive/tuned.json"), "tuned").config.finetune.model_dump()
    tones = load_config(yaml.safe_load((ROOT / "examples/tones.yaml").read_text()), []).finetune.model_dump()
    differs = {name: (tuned[name], tones[name]) for name in tuned if tuned[name] != tones[name]}
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert differs == {
        "loss": ("all", "completion"),
        "target_modules": (layers, "all-linear"),
        "dtype": ("float32", "auto"),
        "per_device_eval_batch_size": (8, 32),
        "eval_steps": (50, 15),  # Olive validates nothing there
    }
    seed = convert_document(read_document(ROOT / "benchmarks/olive/seed.json"), "seed").config
    assert (seed.finetune.max_steps, seed.finetune.source_max_len, seed.finetune.corpus_strategy) == (4, 2048, "join")
    assert (seed.finetune.gradient_accumulation_steps, seed.finetune.data_seed, seed.seed) == (4, 42, 0)
    assert seed.variants.keys() == {"int4"}


# Nothing is dropped silently.


def list_levels(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the paths of all mappings in a value."""
    if isinstance(value, dict):
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from list_levels(one, (*path, key))


def list_leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        yield path
    for key, one in inner or ():
        yield from list_leaves(one, (*path, key))


def set_at(value: Any, path: tuple, one: Any) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = one
    return changed


def write_path(path: tuple) -> str:
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def is_told(text: str, path: tuple) -> bool:
    """Return whether a path, or one that it lies below, is in the list of what was not carried over."""
    left = text.partition("# Not carried over:")[2]
    return any(f"- {write_path(path[:end])}:" in left for end in range(1, len(path) + 1))


@pytest.mark.parametrize("name", EXPECTED)
def test_an_unknown_key_at_any_level_is_told(name):
    recipe = load_recipe(name)
    for number, level in enumerate(list_levels(recipe)):
        key = f"zz_unknown_{number}"
        text = convert(set_at(recipe, (*level, key), 7)).text
        assert key in text or is_told(text, level), write_path(level)


@pytest.mark.parametrize("name", ["phi3_classification", "phi3_sources_azure", "llama2_azure"])
def test_every_value_counts_or_is_told(name):
    """Another value gives another text, unless the place of the value is told to be left out as a whole."""
    recipe = load_recipe(name)
    text = convert(recipe).text
    for path in list_leaves(recipe):
        value = recipe
        for key in path:
            value = value[key]
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else f"{value}x"
        follows = path[-1] == "device"  # from the execution providers beside it
        assert follows or is_told(text, path) or convert(set_at(recipe, path, other)).text != text, write_path(path)


HOSTILE = [None, -1, 0, 1e999, 10**30, "", [], {}, True, "x" * 300, ["a"], {"type": "file"}, [None], "a\u2028b\x1b\ufeff", {"type": 3}]  # fmt: skip


def find_error(values: Any) -> str:
    """Return what is said of a configuration that is refused, or nothing."""
    try:
        convert(values)
    except UserError as error:
        return str(error)
    return ""


def test_a_value_of_any_kind_anywhere_leaves_a_valid_configuration_or_one_line():
    draw = random.Random(0)
    for name in EXPECTED:
        recipe = load_recipe(name)
        for path in draw.sample(list(list_leaves(recipe)), 6):
            for value in draw.sample(HOSTILE, 3):
                assert "is not valid" not in find_error(set_at(recipe, path, value)), (path, value)


def test_a_comment_cannot_become_a_key():
    values = {"finetune.r": 8, "seed": 1}
    lines = list(render_config(values, {"finetune.r": ["one\nseed: 2"], "seed": ["x" * 150 + "\n\nresults: y"]}))
    assert yaml.safe_load("\n".join(lines)) == {"seed": 1, "finetune": {"r": 8}}
