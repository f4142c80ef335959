"""Tokens that are counted word by word: as many as the tokenizer gives for the whole text."""

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lib.data import token_counts
from lib.data.token_counts import TokenCounter, is_split_at_lone_spaces
from lib.data.tokenizer import Tokenizer as OurTokenizer
from lib.data.tokenizer import load_tokenizer

GPT2, LLAMA3, QWEN2 = token_counts._WORDS
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
SIGNS = " \u00a0\u2000\u2003\u3000\u0085\u001c\t\n\r!?.,'\"/<|>-_()0123456789²½Ⅳaábcdefgéßñж日本語한\u0301\u200b🙂👍🏽"


def isolate(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def build(split: pre_tokenizers.PreTokenizer, normalizer: object = None, added: AddedToken | None = None) -> Tokenizer:
    """Train a byte-level tokenizer with many merges, also of signs and white space."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=letters)
    backend.train_from_iterator([*hostile_texts(1, 400), "it's said that 2024 was  fine\n\n  \n" * 20], trainer)
    backend.add_special_tokens([added or AddedToken("<|end|>", special=True, normalized=False)])
    return backend


def hostile_texts(seed: int, count: int) -> list[str]:
    """Texts of words, signs and every white space, alone and in runs; control tokens beside any of them."""
    rng = random.Random(seed)
    words = ["it's", "we'LL", "said", "that", "2024", "1,000.5", "日本語", "naïve", "fine", "<|end|>", "/path", "!!"]
    pieces = [*words, *SIGNS, " ", " ", " ", " ", "  ", "\n\n", " \n "]
    return ["".join(rng.choices(pieces, k=rng.randint(0, 40))) for _ in range(count)]


def wrap(backend: Tokenizer) -> OurTokenizer:
    return OurTokenizer(backend, None, "<|end|>", frozenset([0]), ("<|end|>",), None, {})


SEQUENCE = pre_tokenizers.Sequence
KNOWN = {
    "gpt2": build(WORDS),
    "gpt2 as a split": build(SEQUENCE([isolate(GPT2), BYTES])),
    "smollm": build(SEQUENCE([isolate(r"\p{N}"), isolate(GPT2), BYTES])),
    "digits": build(SEQUENCE([pre_tokenizers.Digits(individual_digits=True), WORDS])),
    "llama3": build(SEQUENCE([isolate(LLAMA3), BYTES])),
    "qwen2": build(SEQUENCE([isolate(QWEN2), BYTES]), normalizers.NFC()),
}


@pytest.mark.parametrize("name", KNOWN)
def test_counts_are_those_of_whole_texts(name, monkeypatch):
    assert is_split_at_lone_spaces(KNOWN[name])
    monkeypatch.setattr(token_counts, "_MOST_KNOWN", 50)
    tokenizer = wrap(KNOWN[name])
    counter = TokenCounter(tokenizer)
    for seed in range(2, 12):
        texts = hostile_texts(seed, 200)
        assert counter.count(texts) == [len(ids) for ids in tokenizer.encode_batch(texts)]
    assert counter.count([]) == []


def test_counts_are_those_of_the_models_that_the_tests_have(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    texts = [*hostile_texts(20, 300), *(f"<|end|>{text}" for text in hostile_texts(21, 50))]
    assert TokenCounter(tokenizer).count(texts) == [len(ids) for ids in tokenizer.encode_batch(texts)]


def test_each_word_is_tokenized_once():
    asked: list[str] = []

    class Asked(OurTokenizer):
        def encode_batch(self, texts):
            asked.extend(texts)
            return super().encode_batch(texts)

    counter = TokenCounter(Asked(**vars(wrap(KNOWN["gpt2"]))))
    counter.count(["a long word", "a word"])
    counter.count(["so long a word"])
    assert sorted(asked) == sorted(["a", " long", " word", "so", " a"])


@pytest.mark.parametrize(
    "backend",
    [
        build(SEQUENCE([isolate(r"\s?\p{L}+"), BYTES])),
        build(BYTES),
        build(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        build(SEQUENCE([pre_tokenizers.Split(Regex(GPT2), "removed"), BYTES])),
        build(pre_tokenizers.Metaspace()),
        build(WORDS, normalizers.NFKC()),
        build(WORDS, added=AddedToken("<|end|>", special=True, lstrip=True)),
        build(WORDS, added=AddedToken("two words", special=True)),
    ],
    ids=["regex", "none", "prefix", "removed", "metaspace", "nfkc", "lstrip", "spaced"],
)
def test_other_tokenizers_read_whole_texts(backend):
    assert not is_split_at_lone_spaces(backend)
    tokenizer = wrap(backend)
    texts = hostile_texts(30, 100)
    assert TokenCounter(tokenizer).count(texts) == [len(ids) for ids in tokenizer.encode_batch(texts)]
