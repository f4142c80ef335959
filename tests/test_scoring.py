"""Scoring in PyTorch: equal to whole sequences one at a time, each row once, labels compared fairly."""

import pytest
import torch
from test_training import LABELS, make_corpus

from lib import torch_scorer
from lib.checkpoints import load_model
from lib.files import read_json, read_jsonl
from lib.scoring import answer_text, encode_choices
from lib.tokens import encode_pairs, load_tokenizer


@pytest.fixture(scope="module")
def scored(tiny_model, tmp_path_factory):
    """Model, tokenizer, template, rows and the predictions of each row."""
    corpus = make_corpus(tiny_model, tmp_path_factory.mktemp("corpus"), rows=20)
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    template, rows = read_json(corpus / "template.json"), list(read_jsonl(corpus / "train.jsonl"))
    return model, tokenizer, template, rows, torch_scorer.score_labels(model, tokenizer, template, rows, 8)


@torch.inference_mode()
def whole_sequence_log_prob(model, prompt: list[int], answer: list[int]) -> float:
    log_probs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(log_probs[len(prompt) + place - 1, id_]) for place, id_ in enumerate(answer))


def test_probabilities_equal_whole_sequences_one_at_a_time(scored):
    model, tokenizer, template, rows, predictions = scored
    choices = encode_choices(tokenizer, template, [row["prompt"] for row in rows])
    for prediction, (prompt, answers) in zip(predictions, choices, strict=True):
        for label, answer in zip(LABELS, answers, strict=True):
            expected = whole_sequence_log_prob(model, prompt, answer)
            assert prediction["log_probs"][label] == pytest.approx(expected, abs=1e-4)


def test_each_row_is_scored_once_and_in_order(scored):
    *_, rows, predictions = scored
    assert [p["id"] for p in predictions] == [row["id"] for row in rows]
    assert all(p["predicted"] == max(p["log_probs"], key=p["log_probs"].get) for p in predictions)


def test_a_label_that_begins_another_is_told_apart_by_the_end_token(scored):
    """joy is a prefix of joyful: without the end token the shorter could never lose."""
    _, tokenizer, template, rows, _ = scored
    [(_, choices)] = encode_choices(tokenizer, template, [rows[0]["prompt"]])
    assert all(ids[-1] in tokenizer.end_ids for ids in choices)
    assert len({tuple(ids) for ids in choices}) == len(LABELS)


def test_prompts_without_a_common_beginning_are_scored_alike(scored):
    model, tokenizer, template, rows, _ = scored
    changed = [{**row, "prompt": f"{number} {row['prompt']}"} for number, row in enumerate(rows[:6])]
    predictions = torch_scorer.score_labels(model, tokenizer, template, changed, 4)
    choices = encode_choices(tokenizer, template, [row["prompt"] for row in changed])
    for prediction, (prompt, answers) in zip(predictions, choices, strict=True):
        expected = whole_sequence_log_prob(model, prompt, answers[0])
        assert prediction["log_probs"][LABELS[0]] == pytest.approx(expected, abs=1e-4)


def test_references_have_the_probability_of_the_whole_sequence(scored):
    model, tokenizer, template, rows, _ = scored
    predictions = torch_scorer.score_references(model, tokenizer, {**template, "task": "generation"}, rows, 4)
    pairs = encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    for row, prediction, (prompt, answer) in zip(rows, predictions, pairs, strict=True):
        assert prediction["reference"] == row["label"]
        assert prediction["tokens"] == len(answer)
        assert prediction["log_prob"] == pytest.approx(whole_sequence_log_prob(model, prompt, answer), abs=1e-4)


def test_free_answers_equal_greedy_decoding_row_by_row(scored):
    model, tokenizer, _, rows, _ = scored
    prompts = tokenizer.encode_batch([row["prompt"] for row in rows[:5]])
    together = torch_scorer.greedy(model, tokenizer, prompts, 5)
    for prompt, answer in zip(prompts, together, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 5 and (len(ids) == len(prompt) or ids[-1] not in tokenizer.end_ids):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer[: len(ids) - len(prompt)] == ids[len(prompt) :]


def test_an_answer_ends_at_the_end_token_and_says_whether_it_came(scored):
    _, tokenizer, template, *_ = scored
    ids = tokenizer.encode("joy")
    end = min(tokenizer.end_ids)
    assert answer_text(tokenizer, template, [*ids, end, *ids]) == ("joy", True)
    assert answer_text(tokenizer, template, ids) == ("joy", False)


def test_the_score_names_the_bytes_it_is_of(scored, tiny_model, tmp_path, run_script):
    corpus = make_corpus(tiny_model, tmp_path, rows=8)
    settings = {
        "task": "classification",
        "seed": 0,
        "evaluate": {"greedy_rows": 2, "batch_size": 4, "max_new_tokens": 4, "bootstrap_samples": 100},
    }
    run_script(
        *("score_checkpoint", "--settings", settings, "--model", tiny_model, "--rows", corpus / "validation.jsonl"),
        *("--template", corpus / "template.json", "--stage", "base", "--split", "validation"),
        *("--output", tmp_path / "score.json", "--predictions", tmp_path / "predictions.jsonl"),
    )
    score = read_json(tmp_path / "score.json")
    assert set(score["inputs"]) == {"rows", "model", "template"}
    assert score["quality"]["n"] == 12
    answered = [row["answer"] is not None for row in read_jsonl(tmp_path / "predictions.jsonl")]
    assert answered == [True] * 2 + [False] * 10
