"""What the installed builder of onnxruntime-genai gets wrong, mended so that it builds what transformers computes.

Each function names the models. `tests/models/test_trial.py` shows that each is needed; `make test-models` builds every
family and compares logits.
"""

import math
from functools import cache, wraps
from importlib import import_module
from typing import Any

# Text models that the builder knows only by the multimodal model that they are the text part of.
BUILT_AS = {
    "Qwen3_5ForCausalLM": "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM": "Qwen3_5MoeForConditionalGeneration",
    "Gemma4ForCausalLM": "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForCausalLM": "Gemma4UnifiedForConditionalGeneration",
    "Ministral3ForCausalLM": "MistralForCausalLM",
}


def adjust_config(config: Any) -> None:
    """Change the configuration (PreTrainedConfig) that the builder reads so that it builds what transformers computes.

    The weights are loaded with the configuration of the folder, which stays as it is.
    """
    name = (config.architectures or [""])[0]
    config.architectures = [BUILT_AS.get(name, name)]
    config.mtp_num_hidden_layers = 0  # a head that drafts tokens (Qwen 3.5), which no checkpoint here keeps
    _adjust_norms(config)
    _adjust_windows(config)
    _adjust_rope(config)


def _adjust_norms(config: Any) -> None:
    """Give the epsilon of norms the one name that the builder reads: Phi-2 and Nemotron have others, OLMo has none."""
    if hasattr(config, "rms_norm_eps"):
        return
    config.rms_norm_eps = getattr(config, "layer_norm_eps", getattr(config, "norm_eps", 1e-5))


def _adjust_windows(config: Any) -> None:
    """Say which layers slide where only the window is given: all of them (Mistral 7B v0.1, Phi-3-mini)."""
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", True):
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


def _adjust_rope(config: Any) -> None:
    """Flatten the rotary embedding of Gemma 3, and cut the frequencies of YaRN where transformers does."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    if config.architectures[0].startswith("Gemma3") and "full_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = dict(rope["full_attention"])
    elif rope.get("rope_type") == "yarn" and rope.get("truncate", True):
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        config.rope_parameters = _cut_yarn(rope, int(head * rope.get("partial_rotary_factor", 1.0)))
        if rope.get("llama_4_scaling_beta"):  # queries grow beyond it, which no graph of the builder does
            config.max_position_embeddings = rope["original_max_position_embeddings"]


def _cut_yarn(rope: dict[str, Any], head: int) -> dict[str, Any]:
    """Return parameters with which the builder's formula gives whole numbers of rotations, as `truncate` asks for.

    The dimension at which `beta` rotations fit the context is head * log(context / (2 pi beta)) / (2 log theta)
    (Peng et al. 2023, YaRN, section 3.2); transformers rounds it, and this inverts the rounded one.
    """
    context, theta = rope["original_max_position_embeddings"], rope["rope_theta"]

    def round_beta(beta: float, whole: Any) -> float:
        place = whole(head * math.log(context / (beta * 2 * math.pi)) / (2 * math.log(theta)))
        return float(context / (2 * math.pi * theta ** (2 * place / head)))

    fast, slow = rope.get("beta_fast") or 32, rope.get("beta_slow") or 1
    return rope | {"beta_fast": round_beta(fast, math.floor), "beta_slow": round_beta(slow, math.ceil)}


@cache
def mend_builder() -> None:
    """Mend classes of the installed builder, once in a process."""
    for mend in MENDS:
        mend()


def _mend_smollm3() -> None:
    """SmolLM3: layers without rotary embeddings ask for position ids, which the graph lacks; no layer needs them."""
    smollm3 = import_builder_class("smollm", "SmolLM3Model")
    make_attention = smollm3.make_attention

    @wraps(make_attention)
    def mended(self: Any, layer_id: int, attention: Any, root_input: str, **options: Any) -> None:
        rope = self.attention_attrs["rope"]
        self.attention_attrs["rope"] = rope and bool(self.no_rope_layers[layer_id])
        try:
            make_attention(self, layer_id, attention, root_input, **options)
        finally:
            self.attention_attrs["rope"] = rope

    smollm3.make_attention = mended


def _mend_olmo() -> None:
    """OLMo: its norms subtract the mean, and the graph has the kind that does not."""
    olmo = import_builder_class("olmo", "OLMoModel")
    start = olmo.__init__

    @wraps(start)
    def mended(self: Any, *given: Any) -> None:
        start(self, *given)
        self.layernorm_attrs["simple"] = False

    olmo.__init__ = mended


def _mend_gemma3() -> None:
    """Gemma 3: the linear scaling of the rotary embedding belongs to layers without a window alone."""
    base = import_builder_class("base", "Model")
    make_caches = base.make_rotary_embedding_caches

    @wraps(make_caches)
    def mended(self: Any, **options: Any) -> Any:
        if options.get("cos_cache_name") == "cos_cache_local":  # the last ones that are made
            self.rope_attrs["rescale_factors"] = 1
        return make_caches(self, **options)

    base.make_rotary_embedding_caches = mended


def _mend_vectors() -> None:
    """Gemma: its norms add one to a weight, which bfloat16 would round again; so vectors are read in float32."""
    base = import_builder_class("base", "Model")
    load = base.load_weights

    @wraps(load)
    def mended(self: Any, path: str) -> Any:
        model = load(self, path)
        for weight in model.parameters() if hasattr(model, "parameters") else ():  # calibrated ones have none
            if weight.dim() == 1 and weight.is_floating_point():
                weight.data = weight.data.float()
        return model

    base.load_weights = mended


MENDS = (_mend_smollm3, _mend_olmo, _mend_gemma3, _mend_vectors)


def import_builder_class(module: str, name: str) -> Any:
    """Import a class of the builder, which puts its own folder on the path when it is loaded."""
    import onnxruntime_genai.models.builder  # noqa: F401

    return getattr(import_module(f"builders.{module}"), name)
