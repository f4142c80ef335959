"""Score what costs nothing, on the rows that the models are scored on.

classification: the majority label, the label whose word stands in the text, and logistic regression
on TF-IDF of words and character n-grams. generation: the answer of the nearest training question.
Fitted on train only. A model that is not better than these is not worth shipping.

Of more than `_MOST_LABELS` labels, or `_MOST_WEIGHTS` labels times terms, logistic regression takes many GB. Then each
text gets the label whose training texts, added up, have the largest cosine to it (the centroid of Rocchio's method), by
words alone and without probabilities: the baseline `nearest_centroid` instead of `tfidf_logreg`.
"""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import write_json, write_jsonl
from lib.core.layout import SCORED_SPLITS, SPLITS
from lib.data.corpus import load_template, read_corpus
from lib.data.template_inversion import extract_input, extract_target, find_word_places
from lib.data.templates import Template
from lib.evaluation.answers import Prediction
from lib.evaluation.bootstrap import compute_point_estimate
from lib.evaluation.many_labels import LabelFinder, find_nearest_centroids
from lib.evaluation.metrics import build_statistics, measure_quality
from lib.evaluation.scoring import describe_references

_MOST_LABELS = 1000
_MOST_WEIGHTS = 20_000_000  # of the regression, whose solver holds some 25 numbers for each
_SMALLEST_PROBABILITY = 1e-12  # keeps log finite for labels that the regression never saw


def main(args: argparse.Namespace) -> None:
    template = load_template(args.template)
    train, validation, test = (read_corpus(path) for path in (args.train, args.validation, args.test))
    scored = [("validation", row) for row in validation] + [("test", row) for row in test]
    if template["task"] == "classification":
        predictions = _classify(train, scored, template, args.settings["seed"])
    else:
        predictions = _copy_answers(train, scored, template)
        _keep_first_answers(predictions, args.settings["evaluate"]["greedy_rows"])
    write_jsonl(args.predictions, predictions)
    report = _qualities(predictions, template, args.settings)
    if template["task"] == "classification":
        report["extra"] = {"without_label_word": _without_label_word(predictions, [*validation, *test], template)}
    write_json(args.output, report)


def _qualities(
    predictions: Sequence[Prediction], template: Template, settings: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return quality by baseline and split."""
    samples = settings["evaluate"]["bootstrap_samples"]
    result: dict[str, dict[str, Any]] = {}
    for (name, split), part in _group_predictions(predictions).items():
        measured = measure_quality(template["task"], part, template["labels"], seed=settings["seed"], samples=samples)
        result.setdefault(name, {})[split] = measured["quality"]
    return result


def _without_label_word(
    predictions: Sequence[Prediction], rows: Sequence[dict[str, Any]], template: Template
) -> dict[str, Any]:
    """Return by split and baseline the accuracy on the n rows whose text does not hold the word of their label."""
    hidden = {row["id"] for row in rows if not find_word_places(row["label"], extract_input(template, row["prompt"]))}
    result: dict[str, Any] = {split: {"n": 0, "accuracy": {}} for split in SCORED_SPLITS}
    kept = [row for row in predictions if row["id"] in hidden]
    for (name, split), part in _group_predictions(kept).items():
        accuracy = compute_point_estimate(build_statistics(template["task"], part, template["labels"])["accuracy"])
        result[split]["n"] = len(part)
        result[split]["accuracy"][name] = accuracy
    return result


def _group_predictions(predictions: Sequence[Prediction]) -> dict[tuple[str, str], list[Prediction]]:
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for row in predictions:
        groups.setdefault((row["baseline"], row["split"]), []).append(row)
    return groups


def _classify(
    train: Sequence[dict[str, Any]], scored: Sequence[tuple[str, dict[str, Any]]], template: Template, seed: int
) -> list[Prediction]:
    """Return predictions of the three baselines on `scored`, pairs of split and row."""
    labels = template["labels"]
    assert labels is not None
    counts = Counter(row["label"] for row in train)
    if len(counts) < 2:
        fail("all training rows have the same label", "bring rows of at least two labels")
    majority = max(sorted(counts), key=lambda label: counts[label])
    texts = [extract_input(template, row["prompt"]) for _, row in scored]
    finder = LabelFinder(labels)
    guesses: dict[str, list[tuple[str, dict[str, float] | None]]] = {
        "majority": [(majority, None) for _ in texts],
        "keyword": [(finder.most_frequent(text, majority), None) for text in texts],
    }
    known = [extract_input(template, row["prompt"]) for row in train], [row["label"] for row in train]
    if learned := _tfidf_logreg(*known, texts, labels, seed):
        guesses["tfidf_logreg"] = learned
    else:
        report_progress("score_baselines: too many labels and terms for logistic regression: nearest centroid instead")
        guesses["nearest_centroid"] = [(label, None) for label in find_nearest_centroids(*known, texts)]
    return [
        {"baseline": name, "split": split, **_label_prediction(row, *guess)}
        for name, found in guesses.items()
        for (split, row), guess in zip(scored, found, strict=True)
    ]


def _tfidf_logreg(
    known_texts: Sequence[str], own_labels: Sequence[str], texts: Sequence[str], labels: Sequence[str], seed: int
) -> list[tuple[str, dict[str, float] | None]] | None:
    """Return for each text the most probable label and the log probability of every label; None where that takes many
    GB.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(own_labels)) > _MOST_LABELS:
        return None
    tfidf = _tfidf()
    terms = tfidf.fit_transform(known_texts)
    if len(set(own_labels)) * terms.shape[1] > _MOST_WEIGHTS:
        return None
    classifier = LogisticRegression(C=10, max_iter=1000, random_state=seed).fit(terms, own_labels)
    seen = classifier.classes_.tolist()
    unseen = {label: math.log(_SMALLEST_PROBABILITY) for label in labels if label not in set(seen)}
    result: list[tuple[str, dict[str, float] | None]] = []
    for shares in classifier.predict_proba(tfidf.transform(texts)):
        known = {label: math.log(max(share, _SMALLEST_PROBABILITY)) for label, share in zip(seen, shares, strict=True)}
        result.append((max(known, key=lambda label: known[label]), known | unseen))
    return result


def _copy_answers(
    train: Sequence[dict[str, Any]], scored: Sequence[tuple[str, dict[str, Any]]], template: Template
) -> list[Prediction]:
    """Return the answer of the training question with the largest TF-IDF cosine."""
    from sklearn.neighbors import NearestNeighbors

    tfidf = _tfidf()
    questions = tfidf.fit_transform([extract_input(template, row["prompt"]) for row in train])
    neighbors = NearestNeighbors(n_neighbors=1, metric="cosine").fit(questions)
    asked = tfidf.transform([extract_input(template, row["prompt"]) for _, row in scored])
    nearest = neighbors.kneighbors(asked, return_distance=False)[:, 0]
    answers = [extract_target(template, row["completion"]) for row in train]
    return [
        {"baseline": "nearest_question", "split": split, **_text_prediction(row, template, answers[index])}
        for (split, row), index in zip(scored, nearest, strict=True)
    ]


def _keep_first_answers(predictions: list[Prediction], greedy_rows: int) -> None:
    """Keep the free answers of the first rows of a split, on which models answer too."""
    for part in _group_predictions(predictions).values():
        for row in part[greedy_rows:]:
            row["answer"] = None


def _tfidf() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )


def _label_prediction(row: dict[str, Any], predicted: str, log_probs: dict[str, float] | None) -> Prediction:
    return {
        "id": row["id"],
        "label": row["label"],
        "predicted": predicted,
        "log_probs": log_probs,
        "answer": None,
        "stopped": None,
    }


def _text_prediction(row: dict[str, Any], template: Template, answer: str) -> Prediction:
    return {
        "id": row["id"],
        **describe_references(row, template),
        "answer": answer,
        "stopped": None,
        "log_prob": None,
        "tokens": None,
    }


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="task, seed, evaluate")
    for split in SPLITS:
        arguments.add_argument(f"--{split}", type=Path, required=True, help=f"corpus rows of {split}")
    arguments.add_argument("--template", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True, help="quality by baseline and split")
    arguments.add_argument("--predictions", type=Path, required=True, help="what each baseline says of each row")
    run(arguments, main)
