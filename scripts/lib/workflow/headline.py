"""The last lines of a finished run: the selected model, its quality, and where the files are."""

from pathlib import Path
from typing import Any

from lib.core.escaping import escape_controls
from lib.core.files import read_json
from lib.evaluation.registry import MAIN_METRIC, METRICS


def format_headline(results: Path) -> str:
    """Return the lines for the terminal, from `summary.json`."""
    summary = read_json(results / "summary.json")
    selected, model = summary["selected"], summary["model"]
    scores = {"model": model, "base model": summary["base"], **summary["baselines"]}
    lines = [f"chosen: {selected['run']}/{selected['variant']}: {selected['reason']}", "", "on the test rows:"]
    lines += [f"  {name:<18} {_quality(score['test'])}" for name, score in scores.items()]
    lines += [
        _against(model["test"]["against"]),
        *_leaks(summary),
        *_answers(summary),
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
    name = next(name for name in MAIN_METRIC.values() if name in against["difference"])
    if against["difference"][name] is None:
        return f"not compared with {against['name']}: no row has a free answer"
    scale = METRICS[name].points
    low, high = (scale * end for end in against["difference_ci95"][name])
    return (
        f"model minus {against['name']}: {scale * against['difference'][name]:+.1f} [{low:+.1f}, {high:+.1f}]"
        f" points of {name} on the same rows, p = {against['mcnemar_p']:.2g}"
    )


def _leaks(summary: dict[str, Any]) -> list[str]:
    """Return what the model scores without the test rows that are like one of an earlier split, where there are any."""
    if not (leaks := summary.get("leaks")):
        return []
    quality = leaks["without"]["model"]
    score = _quality(quality) if quality else "none is left"
    return [f"{leaks['rows']} test rows are like rows of an earlier split; model without them: {score}"]


def _answers(summary: dict[str, Any]) -> list[str]:
    """Return how many test rows get an answer above the threshold of `decision`, and how many of these are right."""
    answered = summary.get("probabilities", {}).get("test", {}).get("answered")
    if not answered:
        return []
    if answered["precision"] is None:
        return ["no probability is high enough to answer: every test row is unsure"]
    (low, high), (least, most) = answered["precision_ci95"], answered["coverage_ci95"]
    return [
        f"sure enough to answer: {answered['coverage']:.3f} of the test rows [{least:.3f}, {most:.3f}], of which"
        f" {answered['precision']:.3f} are right [{low:.3f}, {high:.3f}]"
    ]


def _quality(quality: dict[str, Any]) -> str:
    """Return the metrics that stages are compared by, the main one with its interval."""
    shown = []
    for name, metric in METRICS.items():
        if metric.is_compared and quality.get(name) is not None:
            ci95 = quality[f"{name}_ci95"] if name in MAIN_METRIC.values() else None
            between = f" [{ci95[0]:.{metric.decimals}f}, {ci95[1]:.{metric.decimals}f}]" if ci95 else ""
            shown.append(f"{metric.spoken} {quality[name]:.{metric.decimals}f}{between}")
    return ", ".join(shown)
