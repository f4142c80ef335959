"""Baselines on rows whose right answers are known."""

import json
import math
import random
import re

import pytest
import render_corpus
import score_baselines

from lib.evaluation.many_labels import LabelFinder

CLASSES = {
    "task": "classification",
    "target": "tone",
    "columns": ["phrase"],
    "prompt": [{"text": "<s>joy is in every prompt: "}, {"column": "phrase"}, {"text": "\nTone:"}],
    "completion": [{"text": " "}, {"column": "tone"}, {"text": "</s>"}],
    "labels": ["fear", "joy", "joyful"],
}
ANSWERS = {
    "task": "generation",
    "target": "answer",
    "columns": ["question"],
    "prompt": [{"text": "Q: "}, {"column": "question"}, {"text": "\nA:"}],
    "completion": [{"text": " "}, {"column": "answer"}, {"text": "</s>"}],
    "labels": None,
}
SETTINGS = {"task": "classification", "seed": 0, "evaluate": {"bootstrap_samples": 50, "greedy_rows": 2}}


def tone(number: int, phrase: str, label: str) -> dict:
    prompt = f"<s>joy is in every prompt: {phrase}\nTone:"
    return {"id": f"{label}{number}", "prompt": prompt, "completion": f" {label}</s>", "label": label}


def question(number: int, asked: str, answer: str) -> dict:
    return {"id": f"q{number}", "prompt": f"Q: {asked}\nA:", "completion": f" {answer}</s>"}


@pytest.fixture
def baselines(tmp_path, run_script):
    def score(template, train, validation, test, check=True):
        (tmp_path / "template.json").write_text(json.dumps(template))
        words = []
        for name, rows in {"train": train, "validation": validation, "test": test}.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            words += [f"--{name}", tmp_path / f"{name}.jsonl"]
        words += ["--template", tmp_path / "template.json", "--settings", SETTINGS | {"task": template["task"]}]
        words += ["--output", tmp_path / "out.json", "--predictions", tmp_path / "predictions.jsonl"]
        done = run_script("score_baselines", *words, check=check)
        if not check:
            return done
        lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
        return json.loads((tmp_path / "out.json").read_text()), [json.loads(line) for line in lines]

    return score


TRAIN = [tone(n, f"dark night number {n}", "fear") for n in range(9)] + [
    tone(n, f"sunny day number {n}", "joy") for n in range(6)
]
VALIDATION = [
    tone(20, "a sunny day", "joy"),
    tone(21, "a dark night", "fear"),
    tone(22, "such JOY in a dark night", "joy"),
    tone(23, "joy, rather joyful, joyful", "joyful"),
]


def test_each_baseline_says_what_its_rule_says(baselines):
    scores, predictions = baselines(CLASSES, TRAIN, VALIDATION, VALIDATION[:2])
    said = {
        name: [row["predicted"] for row in predictions if row["baseline"] == name and row["split"] == "validation"]
        for name in ("majority", "keyword", "tfidf_logreg")
    }
    assert said["majority"] == ["fear"] * 4
    # The word `joy` of the template is no evidence; in the last text `joyful` stands more often.
    assert said["keyword"] == ["fear", "fear", "joy", "joyful"]
    assert said["tfidf_logreg"][:2] == ["joy", "fear"]
    assert scores["majority"]["validation"]["accuracy"] == 0.25
    assert scores["keyword"]["validation"]["accuracy"] == 0.75
    assert scores["tfidf_logreg"]["test"]["accuracy"] == 1
    assert scores["tfidf_logreg"]["test"]["n"] == 2


def test_accuracy_is_also_given_for_rows_that_do_not_hold_their_label_word(baselines):
    scores, _ = baselines(CLASSES, TRAIN, VALIDATION, VALIDATION[2:])
    hidden = scores["extra"]["without_label_word"]
    assert hidden["validation"]["n"] == 2
    assert hidden["validation"]["accuracy"]["keyword"] == 0.5
    assert hidden["validation"]["accuracy"]["tfidf_logreg"] == 1
    assert hidden["test"] == {"n": 0, "accuracy": {}}


def test_regression_has_log_probabilities_of_all_labels_and_is_the_same_again(baselines):
    first = baselines(CLASSES, TRAIN, VALIDATION, VALIDATION)
    rows = [row for row in first[1] if row["baseline"] == "tfidf_logreg"]
    for row in rows:
        assert set(row["log_probs"]) == set(CLASSES["labels"])  # joyful is not in train
        assert sum(math.exp(value) for value in row["log_probs"].values()) == pytest.approx(1)
        assert row["predicted"] == max(row["log_probs"], key=row["log_probs"].get)
    assert first == baselines(CLASSES, TRAIN, VALIDATION, VALIDATION)


def test_nothing_is_learned_from_the_rows_that_are_scored(baselines):
    only_in_test = [tone(n, f"zebra zebra {n}", "joy") for n in range(30, 60)]
    _, with_zebras = baselines(CLASSES, TRAIN, VALIDATION, only_in_test)
    _, without = baselines(CLASSES, TRAIN, VALIDATION, VALIDATION)
    pick = [[row for row in rows if row["split"] == "validation"] for rows in (with_zebras, without)]
    assert pick[0] == pick[1]


def test_generation_copies_the_answer_of_the_nearest_question(baselines):
    train = [question(1, "How do I install it?", "Run make."), question(2, "What does it cost?", "Nothing {at} all.")]
    held_out = [
        question(3, "what would it cost me", "Nothing {at} all."),
        question(4, "how to install", "Ask."),
        question(5, "install", "Models answer the first two rows only, so baselines do."),
    ]
    scores, predictions = baselines(ANSWERS, train, held_out, held_out[:1])
    validation = [row for row in predictions if row["split"] == "validation"]
    assert [row["answer"] for row in validation] == ["Nothing {at} all.", "Run make.", None]
    assert [row["reference"] for row in validation][:2] == ["Nothing {at} all.", "Ask."]
    assert scores["nearest_question"]["validation"]["exact_match"] == 0.5
    assert scores["nearest_question"]["test"]["chrf"] == 100
    assert "extra" not in scores


def test_rows_of_another_template_and_a_single_label_are_refused(baselines):
    foreign = [{**VALIDATION[0], "prompt": "something else"}]
    done = baselines(CLASSES, TRAIN, foreign, VALIDATION, check=False)
    assert done.returncode == 1
    assert "does not follow the template" in done.stderr
    done = baselines(CLASSES, TRAIN[:5], VALIDATION, VALIDATION, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: all training rows have the same label;")


@pytest.mark.parametrize(("limit", "most"), [("_MOST_LABELS", 3), ("_MOST_WEIGHTS", 10)])
def test_many_labels_take_the_nearest_centroid_under_a_name_of_its_own(monkeypatch, limit, most):
    monkeypatch.setattr(score_baselines, limit, most)
    labels = [f"word{number}" for number in range(4)]
    train = [tone(n, f"{label} is told in text {n}", label) for n, label in enumerate(labels)]
    asked = [("test", tone(90 + n, f"text {n} tells {label}", label)) for n, label in enumerate(labels)]
    predictions = score_baselines._classify(train, asked, CLASSES | {"labels": labels}, seed=0)
    assert [row["baseline"] for row in predictions[::4]] == ["majority", "keyword", "nearest_centroid"]
    assert [row["predicted"] for row in predictions[8:]] == labels
    assert all(row["log_probs"] is None for row in predictions)


def test_label_words_are_found_as_one_look_after_the_other_finds_them():
    rng = random.Random(3)
    labels = list(dict.fromkeys("".join(rng.choices("ab _.é", k=rng.randint(1, 4))).strip() or "b" for _ in range(60)))
    finder = LabelFinder(labels)
    for _ in range(2000):
        text = "".join(rng.choices("ab _.é", k=14))
        places = {
            label: found
            for label in labels
            if (found := [m.start() for m in re.finditer(rf"(?<!\w){re.escape(label)}(?!\w)", text)])
        }
        expected = min(places, key=lambda label: (-len(places[label]), places[label][0]), default="none")
        assert finder.most_frequent(text, "none") == expected


def test_of_many_labels_each_has_its_turn_behind_some_prompt(monkeypatch):
    monkeypatch.setattr(render_corpus, "_MOST_CHOICES", 3)
    choices = [f" {number}" for number in range(10)]
    tried = [choice for place in range(12) for choice in render_corpus._choices_of_prompt(choices, place)]
    assert len(tried) == 12
    assert set(tried) == set(choices)
    assert render_corpus._choices_of_prompt(choices[:3], 5) == choices[:3]
