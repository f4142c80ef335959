"""Configurations of foreign models: what they state is checked before transformers acts on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.core.cli import extract_first_line, fail
from lib.core.forms import BOOLEAN, INTEGER, TEXT, allow_any_of, allow_null, allow_open_object, list_of, read_form

if TYPE_CHECKING:
    from lib.models.import_checkpoint import ModelSource

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # by the names of transformers' configurations
_MANY_LAYERS = 1000  # the deepest models have some 130
# What is read of config.json here; transformers checks the rest.
_CONFIG = allow_open_object(
    optional={
        "model_type": allow_null(TEXT),
        "architectures": allow_null(list_of(TEXT)),
        "quantization_config": allow_null(allow_open_object()),
        "tie_word_embeddings": allow_null(BOOLEAN),
        "vocab_size": allow_null(INTEGER),
        "eos_token_id": allow_null(allow_any_of(INTEGER, list_of(INTEGER))),
    }
)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a model. Raises `UserError` when what is read of it here has another type."""
    return read_form(folder / "config.json", _CONFIG)


def check_model_type(raw: dict[str, Any], label: str) -> None:
    """Raise `UserError` for a model that transformers does not know, or whose weights are quantized."""
    import transformers

    kind = raw.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        why = "it needs code of its own (auto_map), which is never run" if "auto_map" in raw else "it is unknown"
        fail(
            f"transformers {transformers.__version__} has no model_type {kind!r}: {why}",
            "choose a model that transformers supports itself",
            at=label,
        )
    if quantization := raw.get("quantization_config"):
        method = quantization.get("quant_method", "an unknown method")
        fail(f"its weights are quantized ({method})", "choose the unquantized model: variants quantize later", at=label)


def check_layer_counts(raw: dict[str, Any], source: "ModelSource") -> None:
    """Raise `UserError` when config.json asks for more layers than there are tensors: making them would not end."""
    from lib.models.safetensors_streaming import read_headers

    nested = [part for part in (raw, raw.get("text_config")) if isinstance(part, dict)]
    counts = {name: part[name] for part in nested for name in _LAYERS if name in part}
    many = {name: value for name, value in counts.items() if isinstance(value, int) and value > _MANY_LAYERS}
    for name, value in many.items():
        if value > (tensors := len(read_headers(source.folder, source.weights, source.label))):
            what = f"its config.json says {name} {value}, its weights are {tensors} tensors"
            fail(what, "fetch or save the whole model again", at=source.label)


def check_generation_config(source: "ModelSource") -> None:
    """Raise `UserError` when transformers cannot read the generation config, which every later rule does."""
    import transformers

    read_form(source.folder / "generation_config.json", allow_open_object())
    try:
        transformers.GenerationConfig.from_pretrained(source.folder)
    except Exception as error:  # whatever its values lead to
        fail(
            f"its generation_config.json cannot be read: {extract_first_line(error)}", "save it again", at=source.label
        )
