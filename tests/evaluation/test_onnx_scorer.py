"""Answers scored side by side in ONNX Runtime are what one sequence at a time gives."""

import dataclasses
import random
import shutil

import numpy as np
import pytest

from lib.evaluation import onnx_scorer
from lib.evaluation.onnx_scorer import Scorer, open_scorer
from lib.onnx.runtime import Reader, compute_log_softmax, load_onnx
from support.onnx_samples import build, write_corpus


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    place = tmp_path_factory.mktemp("scorer")
    corpus = write_corpus(place / "corpus", tiny_model)
    # fp32, since int4 kernels round activations to 8 bits: one rounding that falls otherwise moves a logit by 1e-3.
    return build(tiny_model, corpus / "rows.jsonl", place / "fp32", precision="fp32")


def rows_of(seed: int = 0):
    """Prompts of 3 to 40 ids, some with a common beginning, with answers of one to five ids."""
    draw = random.Random(seed)

    def ids(size):
        return [draw.randrange(10, 900) for _ in range(size)]

    shared = ids(12)
    prompts = [ids(3), shared + ids(5), shared + ids(28), shared + ids(1), ids(40), shared, ids(3)]
    return [(prompt, [ids(size) for size in (1, 2, 5, 3)]) for prompt in prompts]


def one_by_one(folder, rows):
    reader = Reader(load_onnx(folder, 1), 64)
    return np.array([reader.log_probs(reader.read(prompt), answers) for prompt, answers in rows])


def test_equals_one_sequence_at_a_time(folder):
    rows = rows_of()
    assert np.abs(np.array(list(Scorer(folder, 1).log_probs(rows))) - one_by_one(folder, rows)).max() < 1e-4


@pytest.mark.parametrize("tokens", [1, 100])
def test_the_limit_of_memory_changes_nothing(folder, monkeypatch, tokens):
    """With room for one answer or for a few, rows are answered in several goes."""
    rows, scorer = rows_of(), Scorer(folder, 1)
    together = np.array(list(scorer.log_probs(rows)))
    monkeypatch.setattr(onnx_scorer, "_KEPT_BYTES", tokens * scorer._token_bytes)
    assert np.abs(np.array(list(scorer.log_probs(rows))) - together).max() < 1e-5


def test_the_prompt_is_read_once_and_answers_go_side_by_side(folder, monkeypatch):
    rows, scorer, calls = rows_of(), Scorer(folder, 1), []
    run = scorer._run
    monkeypatch.setattr(scorer, "_run", lambda ids, *rest, **last: calls.append(ids.shape) or run(ids, *rest, **last))
    list(scorer.log_probs(rows))
    prompts, answers = calls[: len(rows)], calls[len(rows) :]
    assert [shape[0] for shape in prompts] == [1] * len(rows)
    assert prompts[2][1] == 28, "what neighbors begin with is not read again"
    # Seven rows with answers of 2, 3 and 5 ids: four steps for all, whatever their number.
    assert answers == [(21, 1), (14, 1), (7, 1), (7, 1)]


HEADS = {
    "fp32": {"precision": "fp32"},
    "fp32 on all ids": {"precision": "fp32", "prune_lm_head": False},
    "int4": {"precision": "int4"},
    "QDQ": {"precision": "int4", "use_qdq": True},
}


@pytest.mark.parametrize("head", HEADS)
def test_the_head_runs_on_the_ids_that_are_asked_for(tiny_model, tmp_path, head):
    """On a prompt's last id, and on each that predicts one of a long answer."""
    corpus = write_corpus(tmp_path / "corpus", tiny_model)
    folder = build(tiny_model, corpus / "rows.jsonl", tmp_path / "onnx", **HEADS[head])
    scorer, reader, (prompt, (*_, answer)) = Scorer(folder, 1), Reader(load_onnx(folder, 1), 64), rows_of()[4]
    tolerance = 1e-4 if head.startswith("fp32") else 5e-2
    logits, _ = scorer._run(np.array([prompt]), np.array([len(prompt)]), scorer._cache)
    assert logits.shape[:2] == (1, 1)
    whole = reader.read(prompt)
    assert np.abs(compute_log_softmax(logits[0, 0]) - compute_log_softmax(whole)).max() < tolerance
    (expected,) = reader.log_probs(whole, [answer])
    for _ in range(2):  # the second time behind what is known of the same text
        assert scorer.log_prob(prompt, answer) == pytest.approx(expected, abs=len(answer) * tolerance)


def test_a_model_with_other_inputs_is_not_scored_wrongly(folder, tmp_path):
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.input.append(onnx.helper.make_tensor_value_info("token_type_ids", onnx.TensorProto.INT64, [1]))
    for name in ("genai_config.json", "model.onnx.data"):
        shutil.copy(folder / name, tmp_path)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="token_type_ids"):
        Scorer(tmp_path, 1)
    assert open_scorer(dataclasses.replace(load_onnx(folder, 1), folder=tmp_path)) is None, "genai scores it then"
