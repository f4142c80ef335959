"""The language model of a multimodal checkpoint: its configuration, and its tensors by the names of a text model."""

from collections.abc import Iterable, Mapping
from typing import Any

from lib.core.cli import fail


def find_text_part(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of a multimodal model's language model; None for a model of text alone."""
    part = raw.get("text_config")
    return part if isinstance(part, dict) else None


def load_text_config(config: Any, raw: Mapping[str, Any], label: str) -> Any:
    """Return the configuration (PreTrainedConfig) of a multimodal model's language model.

    Raises `UserError` where transformers has no model of that part alone.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    text = config.text_config
    architecture = CAUSAL.get(text.model_type, "")
    if not architecture.endswith("ForCausalLM"):
        fail(
            f"it is multimodal (model_type {config.model_type}), and transformers has no model of its text part alone"
            f" ({text.model_type})",
            "choose a text model, or Qwen 3.5, Gemma 3 or Ministral 3, whose text part is taken",
            at=label,
        )
    text.architectures, text.dtype = [architecture], text.dtype or config.dtype
    own = find_text_part(raw) or {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # older files keep these at the top level
        if own.get(name) is None and raw.get(name) is not None:
            setattr(text, name, raw[name])
    if isinstance(raw.get("tie_word_embeddings"), bool):
        text.tie_word_embeddings = raw["tie_word_embeddings"]
    return text


def name_text_weights(names: Iterable[str]) -> dict[str, str]:
    """Return, for the tensors of a multimodal model's language model, their names in a model of text alone.

    Saved are `model.language_model.layers...` or `language_model.model.layers...`, and the head without or with a
    prefix; the towers for images and sound are left out.
    """
    found = {}
    for name in names:
        for before, after in (
            ("model.language_model.", "model."),
            ("language_model.model.", "model."),
            ("language_model.lm_head.", "lm_head."),
            ("lm_head.", "lm_head."),
        ):
            if name.startswith(before):
                found[name] = after + name.removeprefix(before)
                break
    return found
