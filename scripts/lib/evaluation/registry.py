"""The metrics, each declared once: what it measures, how it is called, and where it may be used.

To add a metric, write a function from `Answered` to `Statistic` and an entry of `METRICS`. Score files, comparisons,
the selection, the gate, the plots and the report take it from there.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lib.core.cli import fail
from lib.evaluation.answers import (
    Prediction,
    compute_best,
    compute_token_f1,
    list_references,
    normalize_unicode,
    normalize_whitespace,
    parse_answer,
)
from lib.evaluation.bootstrap import Statistic, build_ratio, divide
from lib.evaluation.tool_calls import ToolCall, parse_tool_calls

MANY_LABELS = 200  # from here on sums over labels are sparse, and no confusion table is made


@dataclass(frozen=True)
class Answered:
    """The predictions of one stage. labels: None for generation."""

    predictions: Sequence[Prediction]
    labels: list[str] | None

    @cached_property
    def has_answer(self) -> np.ndarray:
        """1.0 for each row with a free answer."""
        return np.array([row["answer"] is not None for row in self.predictions], dtype=float)

    @cached_property
    def label_numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the true and of the predicted labels. Raises `UserError` for a label that is unknown."""
        return index_labels(self.predictions, self.labels or [])

    @cached_property
    def answered_labels(self) -> list[str | None]:
        """The label that each free answer is."""
        labels = self.labels or []
        return [None if row["answer"] is None else parse_answer(row["answer"], labels) for row in self.predictions]


@dataclass(frozen=True)
class Metric:
    """A metric.

    name: its key in score files. title: its name in headings. tasks: which have it. measure: the metric as sums over
    rows. rests_on: all rows, or those with a free answer. highest: the end of its scale. decimals: digits behind the
    point. has_interval: its score has a 95 % interval. is_compared: so has its difference between two stages.
    is_selectable: `selection.metric` and `gate.minimum` may name it. hub_name: what a hub's model card calls it, where
    that is another name.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    measure: Callable[[Answered], Statistic]
    rests_on: Literal["rows", "answers"]
    highest: float = 1.0
    decimals: int = 3
    has_interval: bool = False
    is_compared: bool = False
    is_selectable: bool = False
    hub_name: str = ""

    @property
    def spoken(self) -> str:
        """Its name within a sentence: `accuracy`, `macro-F1`, `chrF`."""
        return self.title if self.title[1].isupper() else self.title[0].lower() + self.title[1:]

    @property
    def points(self) -> float:
        """How many points a difference of 1 is: hundredths where the scale ends at 1."""
        return 100.0 if self.highest == 1 else 1.0

    def count_rows(self, predictions: Sequence[Prediction]) -> int:
        """Return how many rows the metric rests on."""
        if self.rests_on == "rows":
            return len(predictions)
        return sum(row["answer"] is not None for row in predictions)


def measure_accuracy(answered: Answered) -> Statistic:
    truth, predicted = answered.label_numbers
    return build_ratio((truth == predicted).astype(float), np.ones(len(truth)))


def measure_macro_f1(answered: Answered) -> Statistic:
    """Return the mean over labels that occur among true or predicted ones, as scikit-learn's is."""
    counts = _sum_labels(*answered.label_numbers, len(answered.labels or []))

    def value(sums: np.ndarray) -> np.ndarray:
        hits, both = np.split(sums, 2, axis=-1)
        return np.asarray(np.nanmean(divide(2 * hits, both), axis=-1))

    return Statistic(counts, value)


def measure_greedy_accuracy(answered: Answered) -> Statistic:
    pairs = zip(answered.answered_labels, answered.predictions, strict=True)
    return build_ratio(np.array([answer == row["label"] for answer, row in pairs], dtype=float), answered.has_answer)


def measure_invalid_rate(answered: Answered) -> Statistic:
    """Return the share of free answers that are no label."""
    invalid = np.array([answer is None for answer in answered.answered_labels])
    return build_ratio(answered.has_answer * invalid, answered.has_answer)


def measure_stop_rate(answered: Answered) -> Statistic:
    """Return the share of free answers that end by themselves."""
    stopped = [row["stopped"] for row in answered.predictions]
    known = np.array([value is not None for value in stopped], dtype=float)
    return build_ratio(np.array([bool(value) for value in stopped], dtype=float), known)


def measure_chrf(answered: Answered) -> Statistic:
    """Return chrF (Popovic 2015) as sacrebleu computes it for a corpus."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    answers = [normalize_unicode(row["answer"] or "") for row in answered.predictions]
    references = list(itertools.zip_longest(*map(list_references, answered.predictions)))
    # The n-gram counts of each sentence, of which `corpus_score` shows only the total; of several references those of
    # the one that the answer comes nearest to.
    counts = metric._extract_corpus_statistics(answers, references)
    rows = np.column_stack([np.array(counts, dtype=float) * answered.has_answer[:, None], answered.has_answer])

    def value(sums: np.ndarray) -> np.ndarray:
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [metric._compute_f_score(row[:-1].tolist()) if row[-1] else np.nan for row in flat]
        return np.array(scores).reshape(sums.shape[:-1])

    return Statistic(rows, value)


def measure_token_f1(answered: Answered) -> Statistic:
    overlap = np.array([compute_best(compute_token_f1, row) for row in answered.predictions])
    return build_ratio(overlap * answered.has_answer, answered.has_answer)


def measure_exact_match(answered: Answered) -> Statistic:
    exact = np.array([compute_best(_is_same_text, row) for row in answered.predictions])
    return build_ratio(exact * answered.has_answer, answered.has_answer)


def _is_same_text(answer: str, reference: str) -> float:
    return float(normalize_whitespace(answer) == normalize_whitespace(reference))


def measure_tool_names(answered: Answered) -> Statistic:
    """Return the share of the rows with calls whose answer calls the tools of the reference, and no others."""
    return _measure_calls(answered, lambda calls: [call.name for call in calls])


def measure_tool_calls(answered: Answered) -> Statistic:
    """Return the share of the rows with calls whose answer makes those of the reference, with equal arguments."""
    return _measure_calls(answered, lambda calls: calls)


def _measure_calls(answered: Answered, compared: Callable[[list[ToolCall]], list[Any]]) -> Statistic:
    """Count rows whose reference or answer calls a tool; undefined where there are none."""
    calls = [
        ([parse_tool_calls(one) for one in list_references(row)], parse_tool_calls(row["answer"] or ""))
        for row in answered.predictions
    ]
    has_calls = np.array([any([*references, answer]) for references, answer in calls], dtype=float)
    right = np.array([compared(answer) in map(compared, references) for references, answer in calls], dtype=float)
    weights = has_calls * answered.has_answer
    return build_ratio(right * weights, weights)


def measure_perplexity(answered: Answered) -> Statistic:
    """Return exp of the mean negative log probability of a token, over rows that have one (baselines do not)."""
    known = [(row["id"], row["log_prob"] or 0.0, row["tokens"] or 0) for row in answered.predictions]
    for id_, log_prob, _ in known:
        if not math.isfinite(log_prob):
            fail(
                f"the log probability of row {id_} is {log_prob}", "the model computes NaN or infinity: build it again"
            )
    rows = np.array([[-log_prob, tokens] for _, log_prob, tokens in known], dtype=float)
    return Statistic(rows, lambda sums: np.exp(divide(sums[..., 0], sums[..., 1])))


_LABELS, _TEXT = ("classification",), ("generation",)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "accuracy", "Accuracy", _LABELS, measure_accuracy, "rows",
            has_interval=True, is_compared=True, is_selectable=True,
        ),
        Metric(
            "macro_f1", "Macro-F1", _LABELS, measure_macro_f1, "rows",
            has_interval=True, is_compared=True, is_selectable=True, hub_name="f1",
        ),
        Metric("greedy_accuracy", "Free answers right", _LABELS, measure_greedy_accuracy, "answers"),
        Metric("invalid_rate", "Free answers invalid", _LABELS, measure_invalid_rate, "answers"),
        Metric(
            "chrf", "chrF", _TEXT, measure_chrf, "answers", highest=100, decimals=1,
            has_interval=True, is_compared=True, is_selectable=True,
        ),
        Metric("token_f1", "Token F1", _TEXT, measure_token_f1, "answers", is_compared=True, is_selectable=True),
        Metric(
            "exact_match", "Exact match", _TEXT, measure_exact_match, "answers",
            is_compared=True, is_selectable=True,
        ),
        Metric(
            "tool_name_match", "Tool names right", _TEXT, measure_tool_names, "answers",
            is_compared=True, is_selectable=True,
        ),
        Metric(
            "tool_call_match", "Tool calls right", _TEXT, measure_tool_calls, "answers",
            is_compared=True, is_selectable=True,
        ),
        Metric("perplexity", "Perplexity", _TEXT, measure_perplexity, "rows", math.inf, decimals=2, is_compared=True),
        Metric("stop_rate", "Stops by itself", (*_LABELS, *_TEXT), measure_stop_rate, "answers"),
    )
}  # fmt: skip

MAIN_METRIC = {"classification": "accuracy", "generation": "chrf"}  # compared with baselines and between stages
# Chooses checkpoints, and variants unless selection.metric says otherwise.
SELECTED_BY = {"classification": "macro_f1", "generation": "chrf"}


def find_metrics(task: str, has: str | None = None) -> list[str]:
    """Return the names of a task's metrics, in the order in which they are shown.

    has: only those of which this property of `Metric` is true.
    """
    return [
        name for name, metric in METRICS.items() if task in metric.tasks and (has is None or bool(getattr(metric, has)))
    ]


def index_labels(predictions: Sequence[Prediction], labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the places among `labels` of the true and of the predicted labels.

    Raises `UserError` when a label is unknown or a log probability is not a finite number.
    """
    number = {label: index for index, label in enumerate(labels)}
    for row in predictions:
        for key in ("label", "predicted"):
            if row[key] not in number:
                fail(f"row {row['id']}: {key} {row[key]!r} is not one of the labels {labels}", "make the scores again")
        if any(not math.isfinite(value) for value in (row["log_probs"] or {}).values()):
            fail(
                f"row {row['id']}: a log probability is not finite",
                "the model computes NaN or infinity: build it again",
            )
    truth = np.array([number[row["label"]] for row in predictions])
    return truth, np.array([number[row["predicted"]] for row in predictions])


def _sum_labels(truth: np.ndarray, predicted: np.ndarray, size: int) -> Any:
    """Return what each row adds to the hits of the labels, then to their predicted plus true rows: (n, 2 size)."""
    if size > MANY_LABELS:
        from scipy.sparse import csr_array

        row = np.arange(len(truth))
        right = row[truth == predicted]
        places = (np.concatenate([right, row, row]), np.concatenate([truth[right], size + truth, size + predicted]))
        return csr_array((np.ones(len(places[0])), places), shape=(len(truth), 2 * size))
    one_of_each = np.eye(size)
    hits = (truth == predicted).astype(float)
    return np.hstack([one_of_each[truth] * hits[:, None], one_of_each[truth] + one_of_each[predicted]])
