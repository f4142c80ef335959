"""What stands in front of a model card for hubs: YAML that Hugging Face's and other catalogs read."""

from typing import Any

from lib.evaluation.registry import METRICS, find_metrics
from lib.provenance.notices import find_hub_facts
from lib.report.formatting import format_interval

_PIPELINES = {"classification": "text-classification", "generation": "text-generation"}


def render_hub_metadata(settings: dict[str, Any], summary: dict[str, Any], relation: str = "quantized") -> str:
    """Return the YAML block of a card: base model, task, where data are known, and the test scores.

    settings: task, base_model and data of the configuration. relation: what the model is of its base model, by the
    hub's words: `quantized`, `finetune` or `adapter`.
    """
    from huggingface_hub import ModelCardData

    facts = find_hub_facts(settings)
    base = (settings["base_model"].get("hub") or {}).get("id") or facts.get("base_model")
    rows = ((settings.get("data") or {}).get("hub") or {}).get("id")
    data = ModelCardData(
        base_model=base,
        base_model_relation=relation if base else None,
        datasets=[rows] if rows else None,
        license=facts.get("license"),
        library_name="onnx" if relation == "quantized" else "peft" if relation == "adapter" else "transformers",
        pipeline_tag=_PIPELINES[settings["task"]],
        tags=["slmflow", *(["onnxruntime-genai"] if relation == "quantized" else [])],
        model_name=f"{settings['task']} model",
        eval_results=list_results(settings["task"], summary) if relation == "quantized" else None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def list_results(task: str, summary: dict[str, Any]) -> list[Any]:
    """Return the test scores of the packaged model as the hub's EvalResult, with the interval in the metric's name."""
    from huggingface_hub import EvalResult

    quality = summary["model"]["test"]
    found = []
    for name in find_metrics(task, "is_compared"):
        if quality.get(name) is None:
            continue
        interval = format_interval(name, quality) if f"{name}_ci95" in quality else ""
        found.append(
            EvalResult(
                task_type=_PIPELINES[task],
                dataset_type="private",
                dataset_name="test rows of this run",
                dataset_split="test",
                metric_type=METRICS[name].hub_name or name,
                metric_name=METRICS[name].title + (f" (95 % interval {interval})" if interval else ""),
                metric_value=quality[name],
            )
        )
    return found
