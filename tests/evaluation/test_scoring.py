"""Scoring in PyTorch: equal to whole sequences one at a time, each row once, labels compared fairly."""

import argparse
import json

import pytest
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import GenerationConfig

from lib.core.cli import UserError
from lib.core.files import read_json, read_jsonl
from lib.data.template_inversion import extract_fixed_texts, extract_target
from lib.data.templates import compile_template, render_completion, render_prompt
from lib.data.tokenizer import Tokenizer, encode_pairs, load_tokenizer
from lib.evaluation import torch_scorer
from lib.evaluation.metrics import measure_quality
from lib.evaluation.scoring import answer_text, describe_references, encode_choices
from lib.models.loading import load_model
from support.tiny_models import TEXTS, tiny_tokenizer
from support.training import LABELS, make_corpus

SPECIALS = ("<unk>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>")


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
    together = torch_scorer.decode_greedily(model, tokenizer, prompts, 5)
    for prompt, answer in zip(prompts, together, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 5 and (len(ids) == len(prompt) or ids[-1] not in tokenizer.end_ids):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer[: len(ids) - len(prompt)] == ids[len(prompt) :]


def test_free_answers_do_not_follow_the_base_models_own_settings(scored):
    """Its repetition_penalty, say, which ONNX Runtime is not given."""
    model, tokenizer, _, rows, _ = scored
    prompts = tokenizer.encode_batch([row["prompt"] for row in rows[:3]])
    expected, own = torch_scorer.decode_greedily(model, tokenizer, prompts, 12), model.generation_config
    other = GenerationConfig(**own.to_diff_dict() | {"repetition_penalty": 9.0, "num_beams": 3})
    model.generation_config = other
    try:
        assert torch_scorer.decode_greedily(model, tokenizer, prompts, 12) == expected
        assert model.generation_config is other
    finally:
        model.generation_config = own


# What stands around an answer, and the tokenizers that read it


def byte_level(specials: list[str]) -> Backend:
    return tiny_tokenizer(specials, {}, "").backend_tokenizer


def sentencepiece(specials: list[str]) -> Backend:
    """As of Llama 2 and Mistral: a space before the text, which decoding drops; bytes where no piece fits."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=[*specials, *pieces]))
    backend.normalizer = normalizers.NFC()  # as of Qwen
    return backend


def greedy_about_spaces(specials: list[str]) -> Backend:
    """Its thinking tokens take the white space beside them along, and decoding does not bring it back."""
    backend = byte_level(specials)
    thinking = [AddedToken(text, lstrip=True, rstrip=True, special=False) for text in ("<think>", "</think>")]
    backend.add_tokens(thinking)
    return backend


AROUND = {
    "nothing": ("", ""),
    "a space": (" ", " "),
    "a newline": ("\n", "\n"),
    "a thinking block": ("<think>\n\n</think>\n\n", ""),
    "a full stop": ("", "."),
    "words": ("### Answer: ", "\n### End of it\n"),
    "the same on both sides": ("*", "*"),
}
ANSWERS = [
    *("Open the window.", "joy", "etc.", "...", ".", "*", "* a *", "### Answer: yes", "a\n\nb", "a  b"),
    *("ümläut 🙂", "cafe\u0301", "<think>why</think>so", "End of it", "2 < 3"),
]


def made_tokenizer(backend: Backend, around: tuple[str, str]) -> Tokenizer:
    """Its chat template writes `around` before and behind the answer; <|end|> is an end token, but not its eos."""
    before, behind = (json.dumps(text) for text in around)
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content + '<|assistant|>' }}"
        f"{{% else %}}{{{{ {before} + m.content + {behind} + '<|end|>\\n' }}}}{{% endif %}}{{% endfor %}}"
    )
    ends = frozenset(backend.token_to_id(text) for text in ("<|endoftext|>", "<|end|>"))
    return Tokenizer(backend, None, "<|endoftext|>", ends, SPECIALS, source, {})


@pytest.fixture(scope="module", params=[byte_level, sentencepiece, greedy_about_spaces], ids=lambda make: make.__name__)
def backend(request) -> Backend:
    return request.param(list(SPECIALS))


@pytest.fixture(params=AROUND)
def asked(backend, request):
    """A tokenizer, its template for `task: generation`, and the prompt."""
    tokenizer = made_tokenizer(backend, AROUND[request.param])
    corpus = {"template": "chat", "user": "Advice? {text}"}
    template = compile_template(corpus, tokenizer, task="generation", target="reply", labels=None)
    return tokenizer, template, render_prompt(template, {"text": "Rain."})


def test_a_model_that_says_the_completion_is_perfect(asked):
    """Whatever the template writes around the answer and whatever the answer is, in every engine's only functions."""
    tokenizer, template, prompt = asked
    rows = [{"id": answer, "prompt": prompt, "completion": render_completion(template, answer)} for answer in ANSWERS]
    predictions = [torch_scorer.build_unscored_prediction(row, template) for row in rows]
    assert [row["reference"] for row in predictions] == ANSWERS
    pairs = encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    for row, (_, ids) in zip(predictions, pairs, strict=True):
        row["answer"], row["stopped"] = answer_text(tokenizer, template, [*ids, 5, 6])
        row |= {"log_prob": -1.0, "tokens": len(ids)}
    measured = measure_quality("generation", predictions, None, seed=0, samples=50)["quality"]
    assert {name: measured[name] for name in ("exact_match", "chrf", "stop_rate")} == {
        **{"exact_match": 1.0, "chrf": pytest.approx(100), "stop_rate": 1.0}
    }, [(row["reference"], row["answer"]) for row in predictions]
    labels = [
        {**row, "label": row["reference"], "predicted": row["reference"], "log_probs": dict.fromkeys(ANSWERS, -1.0)}
        for row in predictions
    ]
    measured = measure_quality("classification", labels, ANSWERS, seed=0, samples=50)["quality"]
    assert (measured["greedy_accuracy"], measured["invalid_rate"]) == (1.0, 0.0)


def test_fixed_text_that_a_model_leaves_out_is_not_missed(asked):
    """Nor is the end of an answer that ended taken for the beginning of that text."""
    tokenizer, template, prompt = asked
    [(_, ids)] = encode_pairs(tokenizer, [(prompt, "Open window #")])
    for end in tokenizer.end_ids:  # one is not the template's
        assert answer_text(tokenizer, template, [*ids, end]) == ("Open window #", True)


def test_an_answer_that_was_cut_off_loses_what_it_has_of_the_text_behind(asked):
    tokenizer, template, prompt = asked
    [(_, whole), (_, said)] = encode_pairs(
        tokenizer,
        [
            (prompt, render_completion(template, "Open it, 2 <")),
            (prompt, extract_fixed_texts(template)[0] + "Open it, 2 <"),
        ],
    )
    for size in range(len(said), len(whole)):
        assert answer_text(tokenizer, template, whole[:size]) == ("Open it, 2 <", False)
    assert answer_text(tokenizer, template, []) == ("", False)


def test_every_engine_takes_references_and_answers_by_the_same_functions():
    import score_baselines
    import score_onnx

    from lib.serving import answers

    assert {module.answer_text for module in (torch_scorer, score_onnx, answers)} == {answer_text}
    assert {module.describe_references for module in (torch_scorer, score_onnx, score_baselines)} == {
        describe_references
    }


def test_a_completion_of_another_template_is_refused(asked):
    _, template, _ = asked
    with pytest.raises(UserError, match="'Open the window' does not follow the template"):
        extract_target(template, "Open the window")


def test_the_score_names_the_bytes_it_is_of(tiny_llama, tmp_path):
    import score_checkpoint

    corpus = make_corpus(tiny_llama, tmp_path, rows=8)
    evaluate = {"greedy_rows": 2, "batch_size": 4, "max_new_tokens": 4, "bootstrap_samples": 100}
    score_checkpoint.main(
        argparse.Namespace(
            settings={"task": "classification", "seed": 0, "evaluate": evaluate},
            model=tiny_llama,
            adapter=None,
            rows=corpus / "validation.jsonl",
            template=corpus / "template.json",
            stage="base",
            split="validation",
            output=tmp_path / "score.json",
            predictions=tmp_path / "predictions.jsonl",
            threads=1,
        )
    )
    score = read_json(tmp_path / "score.json")
    assert set(score["inputs"]) == {"rows", "model", "template"}
    assert score["quality"]["n"] == 12
    answered = [row["answer"] is not None for row in read_jsonl(tmp_path / "predictions.jsonl")]
    assert answered == [True] * 2 + [False] * 10
