"""The last lines of a finished run: the selected model, its quality, and where the files are."""

from pathlib import Path
from typing import Any

from lib.core.escaping import escape_controls
from lib.core.files import read_json


def format_headline(results: Path) -> str:
    """Return the lines for the terminal, from `summary.json`."""
    summary = read_json(results / "summary.json")
    selected, model = summary["selected"], summary["model"]
    scores = {"model": model, "base model": summary["base"], **summary["baselines"]}
    lines = [f"chosen: {selected['run']}/{selected['variant']}. {selected['reason']}", "", "on the test rows:"]
    lines += [f"  {name:<18} {_quality(score['test'])}" for name, score in scores.items()]
    lines += [
        _against(model["test"]["against"]),
        "",
        f"size {model['size_mb']:.0f} MB, first token after {model['first_token_ms']:.0f} ms,"
        f" {model['tokens_per_second']:.0f} tokens/s, {model['peak_rss_mb']:.0f} MB of memory, on this machine",
        summary["verdict"]["text"],
        "",
        f"report   {results}/report.html",
        f"summary  {results}/summary.json",
        f"model    {results}/model",
    ]
    return "\n".join(map(escape_controls, lines))


def _against(against: dict[str, Any]) -> str:
    """Return the paired difference from the baseline that the model has to beat."""
    name = "accuracy" if "accuracy" in against["difference"] else "chrf"
    if against["difference"][name] is None:
        return f"not compared with {against['name']}: no row has a free answer"
    scale = 1 if name == "chrf" else 100
    low, high = (scale * end for end in against["difference_ci95"][name])
    return (
        f"model minus {against['name']}: {scale * against['difference'][name]:+.1f} [{low:+.1f}, {high:+.1f}]"
        f" points of {name} on the same rows, p = {against['mcnemar_p']:.2g}"
    )


def _quality(quality: dict[str, Any]) -> str:
    if "accuracy" in quality:
        low, high = quality["accuracy_ci95"]
        return f"accuracy {quality['accuracy']:.3f} [{low:.3f}, {high:.3f}], macro-F1 {quality['macro_f1']:.3f}"
    perplexity = quality.get("perplexity")
    shown = f", perplexity {perplexity:.1f}" if perplexity else ""
    return f"chrF {quality['chrf']:.1f}, token F1 {quality['token_f1']:.3f}, exact {quality['exact_match']:.3f}{shown}"
