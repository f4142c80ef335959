"""The small model of the base model's kind: what it keeps, and that the checks on it notice each known fault."""

import json
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from models.families import FAMILIES, write_description

from lib.core.cli import UserError
from lib.models.small_config import VOCABULARY, WINDOW, shrink_config
from lib.models.trial import draw_prompts, make_trial_model


def load_config(name: str, tmp_path):
    from transformers import AutoConfig

    (family,) = (one for one in FAMILIES if one.name == name)
    config = AutoConfig.from_pretrained(write_description(family, tmp_path / name))
    return config.get_text_config() if family.prefix else config


def make_trial(name: str, tmp_path, yarn: bool = False):
    """The folder of a family's trial model, its small files beside it as the base model's."""
    from lib.models.import_checkpoint import ModelSource, import_small_files, load_causal_config

    (family,) = (one for one in FAMILIES if one.name == name)
    folder = write_description(family, tmp_path / "source")
    if name == "qwen25" and yarn:
        config = json.loads((folder / "config.json").read_text())
        config["rope_scaling"] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
        (folder / "config.json").write_text(json.dumps(config))
    source = ModelSource(folder, family.model, [], None, {})
    for folder in ("tokenizer", "trial"):
        (tmp_path / folder).mkdir()
    import_small_files(source, tmp_path / "tokenizer", load_causal_config(source))
    make_trial_model(tmp_path / "tokenizer", tmp_path / "trial")
    return tmp_path / "trial"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_small_configuration_keeps_kinds_of_layers_flags_and_factors(family, tmp_path):
    """Whatever is no size stays as it is; every kind of layer is there, in its order."""
    full = load_config(family.name, tmp_path).to_dict()
    small = shrink_config(load_config(family.name, tmp_path)).to_dict()
    for name, value in full.items():
        if isinstance(value, bool | float | str) and name not in ("dtype", "_name_or_path", "block_auto_adjust_ff_dim"):
            assert small[name] == value, name
    if layers := full.get("layer_types"):
        assert small["layer_types"] == layers[: small["num_hidden_layers"]]
        assert set(small["layer_types"]) == set(layers)
    assert 2 <= small["num_hidden_layers"] <= 12
    assert small["hidden_size"] <= 320
    assert small["vocab_size"] == VOCABULARY
    assert small.get("sliding_window") == (WINDOW if full.get("sliding_window") else full.get("sliding_window"))


def test_prompts_hold_no_special_token_and_go_on_behind_the_window(tmp_path):
    trial = make_trial("gemma3", tmp_path)
    config = json.loads((trial / "config.json").read_text())
    prompts = draw_prompts(trial)
    ends = config["eos_token_id"]
    assert not {*(ends if isinstance(ends, list) else [ends]), config["bos_token_id"]} & {
        id_ for ids in prompts for id_ in ids
    }
    assert max(map(len, prompts)) > 4 * config["sliding_window"]


@pytest.mark.parametrize(
    ("name", "adjustment"),
    [
        ("phi2", "_adjust_norms"),
        ("nemotron", "_adjust_norms"),
        ("mistral_v01", "_adjust_windows"),
        ("phi3_4k", "_adjust_windows"),
        ("ministral3", "_adjust_rope"),
        ("qwen25", "_adjust_rope"),  # with YaRN, as its own page says for long texts
        ("gemma3", "_adjust_rope"),
    ],
)
def test_a_builder_that_builds_another_model_is_told_and_each_adjustment_is_needed(
    name, adjustment, tmp_path, monkeypatch
):
    import check_build

    from lib.onnx import builder_mends

    trial = make_trial(name, tmp_path, yarn=True)
    assert check_build.compare_in_float(trial, "owner/model", "X") < 1e-4
    monkeypatch.setattr(builder_mends, adjustment, lambda config: None)
    with pytest.raises(
        UserError, match=r"owner/model: onnxruntime-genai \S+ (builds another model of|cannot build) X: "
    ):
        check_build.compare_in_float(trial, "owner/model", "X")


@pytest.mark.parametrize(
    ("name", "module", "owner", "method"),
    [
        ("smollm3", "smollm", "SmolLM3Model", "make_attention"),
        ("olmo1", "olmo", "OLMoModel", "__init__"),
        ("gemma3_4b", "base", "Model", "make_rotary_embedding_caches"),
        ("gemma1", "base", "Model", "load_weights"),
    ],
)
def test_each_mend_of_the_builder_is_needed(name, module, owner, method, tmp_path, monkeypatch):
    import check_build

    from lib.models.trial import store_trial_model
    from lib.onnx.builder_mends import import_builder_class, mend_builder

    trial, stored = make_trial(name, tmp_path), tmp_path / "stored"
    stored.mkdir()
    store_trial_model(trial, stored, tmp_path / "tokenizer")
    assert check_build.compare_in_float(stored, "owner/model", "X") < 1e-4
    mend_builder()
    mended = import_builder_class(module, owner)
    monkeypatch.setattr(mended, method, getattr(mended, method).__wrapped__)
    with pytest.raises(UserError, match=r"(builds another model of|cannot build) X: "):
        check_build.compare_in_float(stored, "owner/model", "X")


def test_a_fault_of_the_builder_in_4_bits_is_not_taken_for_rounding(tmp_path, monkeypatch):
    """The weights are right and the graph is wrong: the norms of Phi-2 with another epsilon."""
    import check_build

    from lib.config.variants import Variant
    from lib.onnx import builder_mends

    trial, variant = make_trial("phi2", tmp_path), Variant().model_dump(mode="json", exclude_none=True)
    assert check_build.try_variant(trial, "int4", variant, 0) < 1e-4
    monkeypatch.setattr(builder_mends, "_adjust_norms", lambda config: None)
    with pytest.raises(
        UserError, match=r"variants\.int4: tried on a small model .* with the same weights its logits differ"
    ):
        check_build.try_variant(trial, "int4", variant, 0)


def test_what_the_builder_cannot_build_is_told_with_its_reason_and_what_works(tmp_path):
    import check_build

    trial = make_trial("granite4_hybrid", tmp_path)
    with pytest.raises(UserError) as refused:
        check_build.compare_in_float(trial, "ibm-granite/granite-4.0-h-350m", "GraniteMoeHybridForCausalLM")
    said = str(refused.value)
    assert said.startswith("ibm-granite/granite-4.0-h-350m: onnxruntime-genai ")
    assert "cannot build GraniteMoeHybridForCausalLM: AttributeError" in said
    assert "Qwen/Qwen3-0.6B" in said
    assert "\n" not in said


def test_an_architecture_that_the_builder_does_not_list_is_refused():
    from lib.onnx.builder import check_architecture, list_architectures

    assert {"LlamaForCausalLM", "Phi3ForCausalLM"} <= list_architectures()
    check_architecture(SimpleNamespace(architectures=["Qwen3_5ForCausalLM"]), "x")
    with pytest.raises(
        UserError, match=r"x: onnxruntime-genai \S+ cannot build FalconForCausalLM; take another base model"
    ):
        check_architecture(SimpleNamespace(architectures=["FalconForCausalLM"]), "x")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"head_dim": 100}, "attention heads have 100 values"),
        ({"head_dim": 64, "partial_rotary_factor": 0.4}, "rotary embeddings have 25 values"),
        ({"head_dim": 80, "partial_rotary_factor": 0.4}, None),
        ({"hidden_size": 96, "num_attention_heads": 4}, "attention heads have 24 values"),
        ({"hidden_size": 96, "num_attention_heads": 3}, None),
    ],
)
def test_heads_are_computed_from_the_true_sizes(values, said):
    import check_build

    config = SimpleNamespace(**values, to_dict=lambda: values)
    if said is None:
        check_build.check_heads(config, "x")
        return
    with pytest.raises(UserError, match=f"x: its {said}; ONNX Runtime takes multiples of 16"):
        check_build.check_heads(config, "x")


@pytest.mark.parametrize("name", ["lfm2", "qwen35", "gemma3", "gemma2", "qwen3"])
def test_a_batch_scores_as_each_text_alone(name, tmp_path):
    import check_training

    check_training.check_scores(make_trial(name, tmp_path), "x")


def test_a_shared_beginning_is_noticed_where_a_window_does_not_allow_it(tmp_path, monkeypatch):
    """What the check found when prompts first went on behind the window: padding counts as a part of it."""
    import check_training

    from lib.evaluation import torch_scorer

    trial = make_trial("gemma3", tmp_path)
    monkeypatch.setattr(torch_scorer, "is_within_window", lambda config, room: True)
    with pytest.raises(UserError, match="its log probabilities differ"):
        check_training.check_scores(trial, "x")


def test_a_score_that_differs_in_a_batch_is_told(tmp_path, monkeypatch):
    import check_training

    from lib.evaluation import torch_scorer

    trial = make_trial("qwen3", tmp_path)
    monkeypatch.setattr(torch_scorer, "compute_positions", lambda mask: mask.cumsum(dim=1) % 7)
    with pytest.raises(UserError, match="its log probabilities differ by .* between a batch and each text alone"):
        check_training.check_scores(trial, "x")


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_a_mixture_of_experts_is_adapted_where_it_can_be_merged(method, tmp_path):
    import check_training

    trial = make_trial("qwen3_moe", tmp_path)
    settings = {"method": method, "target_modules": "all-linear", "dtype": "float32", "gradient_checkpointing": False}
    check_training.train(trial, settings, tmp_path / "work", tmp_path / "merged", "x")
    adapter = json.loads((tmp_path / "work/adapter/adapter_config.json").read_text())
    assert not adapter.get("target_parameters")
    assert set(adapter["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_the_trial_model_is_the_same_each_time_and_leaves_the_random_state(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = make_trial("llama32", tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    (tmp_path / "again").mkdir()
    make_trial_model(tmp_path / "tokenizer", tmp_path / "again")
    assert (one / "model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.template], ids=lambda family: family.name)
def test_chats_are_rendered_as_transformers_renders_them(family, tmp_path, monkeypatch):
    """With and without a system text; a date that is configured is the date that transformers is told."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

    from lib.data.chat_templates import render_conversations, set_chat_variables

    folder = write_description(family, tmp_path / "base")
    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 31)))
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    variables = {role: token for role, token in family.tokens.items() if token}
    source = set_chat_variables(
        family.template, family.options, "2026-01-31" if "strftime_now" in family.template else None
    )
    turns = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "That."},
        {"role": "user", "content": "Why {x}?"},
    ]
    chats = [turns, turns[:1], turns[:2]]
    if family.system:
        chats += [[{"role": "system", "content": "Be brief."}, *chat] for chat in chats]
    found = render_conversations(source, chats, variables)
    for chat, text in zip(chats, found, strict=True):
        expected = theirs.apply_chat_template(
            chat,
            chat_template=family.template,
            tokenize=False,
            add_generation_prompt=chat[-1]["role"] == "user",
            **family.options,
        )
        assert text == expected


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_phi3"])
def test_parameters_are_counted_from_the_configuration_tied_weights_once(name, request):
    import check_training

    from support.fetching import parameters

    folder = request.getfixturevalue(name)
    assert check_training.count_parameters(folder) == parameters(folder)
