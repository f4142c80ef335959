"""The builder of onnxruntime-genai: which architectures it knows, and one call of it.

`adjust_config` and `mend_builder` make it build what transformers computes, for models that the locked version gets
wrong; each line names the models, and the matrix of families (tests/models) builds them and compares logits.
"""

import ast
import contextlib
import importlib.util
import io
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from lib.core.cli import extract_first_line, fail, report_loaded

_PROVIDERS = {"trt-rtx": "NvTensorRtRtx"}  # where the builder's command line has another name
_NOT_OPTIONS = ("precision", "execution_provider", "score", "calibration")
# Text models that the builder knows only by the multimodal model that they are the text part of.
_BUILT_AS = {
    "Qwen3_5ForCausalLM": "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM": "Qwen3_5MoeForConditionalGeneration",
    "Gemma4ForCausalLM": "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForCausalLM": "Gemma4UnifiedForConditionalGeneration",
    "Ministral3ForCausalLM": "MistralForCausalLM",
}


# Built in 4 bits only from experts that are quantized already (MXFP4), which cannot be trained.
_QUANTIZED_ALREADY = ("GptOssForCausalLM",)


@cache
def list_architectures() -> frozenset[str]:
    """Return the architectures that the installed builder names, read from its source: it has no list to ask for."""
    spec = importlib.util.find_spec("onnxruntime_genai")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "models" / "builder.py").read_text(encoding="utf-8")
    names = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return frozenset(
        name for name in names if isinstance(name, str) and name.isidentifier() and "For" in name and name[0].isupper()
    )


def name_builder() -> str:
    """Return name and version of the builder, as messages give it."""
    return f"onnxruntime-genai {version('onnxruntime-genai')}"


def check_architecture(config: Any, label: str | Path) -> None:
    """Raise `UserError` when the installed builder cannot build the architecture of a model (PreTrainedConfig)."""
    from lib.models.trial import HINT

    name = (config.architectures or ["?"])[0]
    what = f"{name_builder()} cannot build {name}"
    if getattr(config, "hidden_size_per_layer_input", None):
        fail(f"{what}, the text part of a multimodal model, with embeddings of each layer", HINT, at=label)
    if name in _QUANTIZED_ALREADY:
        fail(
            f"{what} in 4 bits but from weights that are quantized already, and these cannot be trained", HINT, at=label
        )
    if _BUILT_AS.get(name, name) not in list_architectures():
        fail(what, HINT, at=label)


def build(merged: Path, folder: Path, variant: Mapping[str, Any], options: list[str]) -> None:
    """Run the builder in this process. Raises `UserError` when it refuses the variant."""
    try:
        run_builder(merged, folder, variant, options)
    except MemoryError:
        raise
    except Exception as error:  # the builder raises anything from KeyError to AssertionError
        refuse_variant(f"the builder refuses it: {type(error).__name__}: {extract_first_line(error)}", error)


def run_builder(merged: Path, folder: Path, variant: Mapping[str, Any], options: list[str]) -> None:
    """Run the builder in this process. Exceptions of the builder pass through unchanged."""
    said = io.StringIO()
    provider = variant["execution_provider"]
    provider = _PROVIDERS.get(provider, provider)
    with tempfile.TemporaryDirectory() as scratch, _quiet(said), _no_checkout():
        from onnxruntime_genai.models.builder import create_model, parse_extra_options

        where = ("", str(merged), str(folder), variant["precision"], provider, scratch)
        report_loaded()
        try:
            prepared = parse_extra_options(*where, options)
            adjust_config(prepared["hf_details"]["hf_config"])
            mend_builder()
            create_model(*where, **prepared)
        finally:
            sys.stdout.write(said.getvalue())


def refuse_variant(what: str, error: Exception | None = None) -> NoReturn:
    """Raise `UserError` for a build that its options have led to; the log holds the whole of the error."""
    if error is not None:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    fail(what, "change the options of this variant")


def has_tied_head(model: Path) -> bool:
    """Tell whether a model's embeddings are its vocabulary head; many files leave it to their class's default."""
    from transformers import AutoConfig

    return bool(AutoConfig.from_pretrained(model, trust_remote_code=False).tie_word_embeddings)


def list_builder_options(variant: Mapping[str, Any], tied: bool) -> list[str]:
    """Return the variant's options as the builder's KEY=VALUE texts; null leaves the builder's default.

    tied: the base model's embeddings are its vocabulary head. The builder then keeps one weight for both, in a form
    that cannot be loaded when the head is asymmetric or in 8 bits, and refuses it in QDQ form; apart, both load
    (tests/onnx/test_variants.py tries every combination).
    """
    calibrated = variant.get("algo_config") == "auto_round"
    values = {name: value for name, value in variant.items() if name not in _NOT_OPTIONS and value is not None}
    if calibrated:  # the weights come rounded; the options are for the head
        values = {name: value for name, value in values.items() if name not in ("algo_config", "is_symmetric")}
    apart = (
        values.get("is_symmetric") is False
        or "last_matmul:int8" in values.get("matmul_mixed_precision", "")
        or values.get("use_qdq")
    )
    if tied and apart and values.get("algo_config", "default") == "default":
        values.setdefault("shared_embeddings", False)
    # A cache as short as the window cannot be as short as a prompt: ONNX Runtime 1.32 refuses the room.
    values.setdefault("windowed_kv_cache", False)
    return ["hf_token=false", *(f"{name}={_option(name, value)}" for name, value in values.items())]


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ("/" if name == "op_types_to_quantize" else ",").join(value)
    return str(value)


def adjust_config(config: Any) -> None:
    """Change the configuration (PreTrainedConfig) that the builder reads so that it builds what transformers computes.

    The weights are loaded with the configuration of the folder, which stays as it is.
    """
    name = (config.architectures or [""])[0]
    config.architectures = [_BUILT_AS.get(name, name)]
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
    """Mend classes of the installed builder, once in a process.

    SmolLM3: its layers without rotary embeddings ask for position ids, which no other layer needs and the graph lacks.
    OLMo: its norms subtract the mean, and the graph has the kind that does not. Gemma 3: the linear scaling of the
    rotary embedding belongs to layers without a window alone. All: vectors are read in float32, since Gemma's norms add
    one to a weight, which bfloat16 would round again.
    """
    # The builder puts its own folder on the path, and loads its classes from there.
    smollm3, olmo = import_module("builders.smollm").SmolLM3Model, import_module("builders.olmo").OLMoModel
    base = import_module("builders.base").Model
    plain_attention, plain_start = smollm3.make_attention, olmo.__init__
    plain_caches, plain_load = base.make_rotary_embedding_caches, base.load_weights

    def make_attention(self: Any, layer_id: int, attention: Any, root_input: str, **options: Any) -> None:
        rope = self.attention_attrs["rope"]
        self.attention_attrs["rope"] = rope and bool(self.no_rope_layers[layer_id])
        try:
            plain_attention(self, layer_id, attention, root_input, **options)
        finally:
            self.attention_attrs["rope"] = rope

    def start(self: Any, *given: Any) -> None:
        plain_start(self, *given)
        self.layernorm_attrs["simple"] = False

    def make_caches(self: Any, **options: Any) -> Any:
        if options.get("cos_cache_name") == "cos_cache_local":  # the last ones that are made
            self.rope_attrs["rescale_factors"] = 1
        return plain_caches(self, **options)

    def load(self: Any, path: str) -> Any:
        model = plain_load(self, path)
        for weight in model.parameters() if hasattr(model, "parameters") else ():  # calibrated ones have none
            if weight.dim() == 1 and weight.is_floating_point():
                weight.data = weight.data.float()
        return model

    smollm3.make_attention, olmo.__init__ = make_attention, start
    base.make_rotary_embedding_caches, base.load_weights = make_caches, load


@contextlib.contextmanager
def _quiet(said: io.StringIO) -> Iterator[None]:
    """Keep the builder's lines back: it logs one for each node and draws a bar for each weight."""
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _no_checkout() -> Iterator[None]:
    """Hide the git checkout that the builder's package may lie in.

    The builder writes that checkout's commit into the model, and it is ours where the environment lies in the project:
    each commit would change the bytes. Without one it takes its own package's commit.
    """
    before = os.environ.get("GIT_DIR")
    os.environ["GIT_DIR"] = os.devnull
    try:
        yield
    finally:
        os.environ.pop("GIT_DIR")
        if before is not None:
            os.environ["GIT_DIR"] = before
