"""A metric is declared once: an entry in the registry reaches every place that its properties name."""

import json

import numpy as np
import pytest
import yaml

from lib.config.loader import load_config
from lib.evaluation.bootstrap import build_ratio
from lib.evaluation.comparison import compare_stages_with_intervals
from lib.evaluation.metrics import measure_quality
from lib.evaluation.registry import METRICS, Metric, find_metrics
from lib.report import formatting
from support.paths import ROOT

LABELS = ["joy", "fear"]


def predictions(answers: list[str | None]) -> list[dict]:
    pairs = zip("jfjf", answers, strict=True)
    names = {"j": "joy", "f": "fear"}
    return [
        {
            "id": str(number),
            "label": names[truth],
            "predicted": "joy",
            "log_probs": None,
            "answer": answer,
            "stopped": None,
        }
        for number, (truth, answer) in enumerate(pairs)
    ]


@pytest.fixture
def new(monkeypatch) -> Metric:
    """A metric that nothing else knows: the share of free answers with an o."""

    def measure(answered):
        return build_ratio(
            np.array([float("o" in (row["answer"] or "")) for row in answered.predictions]), answered.has_answer
        )

    metric = Metric(
        "with_o", "Answers with an o", ("classification",), measure, "answers", highest=1, decimals=2,
        has_interval=True, is_compared=True, is_selectable=True,
    )  # fmt: skip
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric


def test_a_new_entry_reaches_scores_comparisons_configuration_and_words(new):
    before, after = predictions(["joy", "fear", "fear", None]), predictions(["joy", "joy", "fear", None])
    score = measure_quality("classification", after, LABELS, seed=0, samples=50)["quality"]
    assert score["with_o"] == pytest.approx(2 / 3)
    assert 0 <= score["with_o_ci95"][0] < score["with_o_ci95"][1] <= 1
    compared = compare_stages_with_intervals("classification", before, after, name="x", seed=0, samples=50)
    assert compared["against"]["difference"]["with_o"] == pytest.approx(1 / 3)
    assert new.count_rows(after) == 3
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    values.update(selection={"metric": "with_o"}, gate={"minimum": {"with_o": 0.5}})
    assert load_config(values, []).selection.metric == "with_o"
    assert formatting.format_metric("with_o", 0.5) == "0.50"
    assert formatting.name_points("with_o") == "points of answers with an o"


def test_a_metric_is_named_nowhere_but_in_the_registry():
    """Elsewhere a name would be a second declaration; these ask for one metric and no list of them."""
    allowed = {
        "greedy_accuracy": {"lib/onnx/build_checks.py"}, "perplexity": {"lib/report/evidence.py"},
    }  # fmt: skip
    scripts = {
        path.relative_to(ROOT / "scripts").as_posix(): path.read_text() for path in (ROOT / "scripts").rglob("*.py")
    }
    del scripts["lib/evaluation/registry.py"]
    for name in set(METRICS) - {"accuracy", "chrf"}:  # the main ones, which some sentences are about
        found = {file for file, text in scripts.items() if json.dumps(name) in text}
        assert found <= allowed.get(name, set()), name


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_what_is_selectable_is_compared_and_has_a_finite_scale(task):
    for name in find_metrics(task, "is_selectable"):
        assert METRICS[name].is_compared
        assert np.isfinite(METRICS[name].highest)
