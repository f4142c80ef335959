"""Models whose headers, configurations or tokenizers ask for more than there is: refused in one line, before anything
is built of them."""

import shutil
import struct
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.core.limits import Limits
from lib.models import model_trial
from lib.models.gguf_head import check_layers, read_head
from support.changed_tokenizers import changed_tokenizer, replace
from support.fetching import edit_json, fetch_path, parameters, refused
from support.gguf_files import write_gguf


@pytest.fixture(scope="module")
def count(tiny_llama):
    return parameters(tiny_llama)


def text(content: str | bytes) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(content)) + content


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def head(*keys: bytes, tensors: list[bytes] | None = None, counts: tuple[int, int] | None = None) -> bytes:
    tensors = tensors or []
    return b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(tensors), len(keys)))) + b"".join([*keys, *tensors])


def array(kind: int, length: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + content


TINY = key("a", 4, struct.pack("<I", 1))
HEADS = {
    "an array of 2^62 numbers in 53 bytes": (head(key("a", 9, array(0, 1 << 62))), "it counts 4611686018427387904"),
    "an array longer than the file": (head(key("a", 9, array(4, 1000, b"x" * 2000))), "a length of 4000"),
    "texts of 2^40 signs": (head(key("a", 8, struct.pack("<Q", 1 << 40))), "a length of 1099511627776"),
    "a text behind the end": (head(key("a", 9, array(8, 2, text("b") + struct.pack("<Q", 100)))), "a length of 100"),
    "a name of 2^60 signs": (head(struct.pack("<Q", 1 << 60) + b"x" * 20), "a length of"),
    "lists of lists": (head(key("a", 9, array(9, 1, array(9, 1, array(0, 1, b"x"))))), "values of the type 9"),
    "an unknown type": (head(key("a", 13, b"x")), "values of the type 13"),
    "2^50 keys": (head(TINY, counts=(0, 1 << 50)), "it counts 1125899906842624"),
    "2^50 tensors": (head(TINY, counts=(1 << 50, 1)), "it counts 1125899906842624"),
    "a key twice": (head(TINY, TINY), "key 'a' is listed twice"),
    "a tensor twice": (head(TINY, tensors=[tensor("t", 1)] * 2), "tensor 't' is listed twice"),
    "a tensor of a thousand dimensions": (head(TINY, tensors=[tensor("t", *[1] * 1000)]), "1000 dimensions"),
    "a tensor of 2^64 numbers": (head(TINY, tensors=[tensor("t", 1 << 32, 1 << 32)]), "its tensors end at"),
    "a tensor behind the end": (head(TINY, tensors=[tensor("t", 1, offset=1 << 40)]), "its tensors end at"),
    "a tensor of an unknown type": (head(TINY, tensors=[tensor("t", 1, kind=999)]), "999 is not a valid"),
    "a key that is no text": (head(key(b"\xff", 8, text("b"))), "can't decode"),
    "an alignment of nothing": (head(key("general.alignment", 4, b"\0" * 4)), "general.alignment is 0"),
    "fewer tensors than it says": (head(TINY, tensors=[tensor("t", 1)], counts=(2, 1)), "a length of"),
    "nothing": (b"", "it is too short"),
    "a head cut off": (head(TINY)[:26], "a length of"),
    "another file": (b"PK\x03\x04" + b"x" * 100, "it begins with other signs"),
}


@pytest.mark.parametrize(("content", "expected"), HEADS.values(), ids=HEADS)
def test_each_length_of_a_gguf_file_must_fit_into_it(tmp_path, content, expected):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_head(path, "mine")
    assert str(error.value).startswith("mine: model.gguf is not a whole GGUF file: ")
    assert expected in str(error.value)


def test_a_gguf_file_full_of_holes_is_refused(tmp_path):
    """A file may have a terabyte and take no room; its arrays would, once they are read."""
    path = tmp_path / "model.gguf"
    path.write_bytes(head(key("a", 9, array(0, 1 << 39))))
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="it counts 549755813888 values"):
        read_head(path, "mine")


def test_gguf_files_of_either_byte_order_pass(tiny_llama, tmp_path):
    import gguf

    read_head(write_gguf(tiny_llama, tmp_path / "model.gguf"), "mine")

    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_array("a", ["b", "c"])
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_head(tmp_path / "big.gguf", "mine").keys["a"] == ["b", "c"]


def test_a_head_holds_what_the_library_reads(tiny_llama, tmp_path):
    from gguf import GGUFReader

    path = write_gguf(tiny_llama, tmp_path / "model.gguf")
    theirs = GGUFReader(path)
    keys, tensors = read_head(path, "mine")
    assert keys == {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert tensors == {one.name: (one.tensor_type.name, int(one.n_elements)) for one in theirs.tensors}


@pytest.mark.parametrize("stated", [0, -1, 10**6, 1, 3, None, "2", [2], True, 2.0])
def test_a_gguf_file_has_the_layers_that_it_says(stated):
    names = ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.1.ffn_up.weight"]
    check_layers({"general.architecture": "llama", "llama.block_count": 2}, names, Path("a.gguf"), "mine")
    with pytest.raises(
        UserError, match=r"mine: a.gguf says that it has .* layers \(block_count\), and has tensors of 2"
    ):
        check_layers({"general.architecture": "llama", "llama.block_count": stated}, names, Path("a.gguf"), "mine")


def test_a_gguf_file_without_layers_is_no_model():
    with pytest.raises(UserError, match="0 layers"):
        check_layers({"general.architecture": "llama", "llama.block_count": 0}, ["a.weight"], Path("a.gguf"), "mine")


KEYS = {
    "llama.attention.head_count_kv": [0, 7, 2**31],
    "llama.attention.head_count": [0, 2**31],
    "llama.feed_forward_length": [0, 2**31],
    "llama.embedding_length": [0, 2**31],
    "llama.block_count": [0, 10**6],
    "llama.context_length": [2**31],
    "llama.vocab_size": [2**31],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in KEYS for value in KEYS[name]])
def test_keys_of_a_gguf_file_that_fit_no_model_are_one_line(tiny_llama, count, tmp_path, name, value):
    path = write_gguf(tiny_llama, tmp_path / "model.gguf")
    content = path.read_bytes()
    place = content.index(text(name)) + len(text(name)) + 4
    path.write_bytes(content[:place] + struct.pack("<I", value) + content[place + 4 :])
    try:
        fetch_path(path, tmp_path / "out", count)
    except UserError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 (some are no fault)
    else:
        assert name in ("llama.context_length", "llama.vocab_size")  # which no tensor depends upon


SIZES = [
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 10**5},
    {"vocab_size": 2**40},
    {"hidden_size": 2**40},
    {"intermediate_size": 2**62},
    {"num_attention_heads": 2**40},
    {"num_key_value_heads": 0},
    {"head_dim": 2**33},
    {"max_position_embeddings": 2**60},
    {"num_hidden_layers": -1},
    {"num_hidden_layers": "2"},
    {"hidden_size": None, "vocab_size": []},
    {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
    {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0, "short_factor": 7}},
    {"layer_types": ["full_attention"] * 10**5},
    {"dtype": "no_such"},
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: next(iter(sizes)))
def test_a_configuration_of_absurd_sizes_is_one_line(tiny_llama, count, tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(model_trial, "LIMITS", Limits(seconds=1, megabytes=500))
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    edit_json(model / "config.json", **sizes)
    try:
        fetch_path(model, tmp_path / "out" / "base", count)
    except UserError as error:
        assert str(error).startswith((f"{model}: ", f"{model}/config.json: "))  # noqa: PT017 (some are no fault)
    else:
        assert next(iter(sizes)) in ("max_position_embeddings", "dtype", "layer_types")


def test_a_configuration_that_takes_too_much_to_build_is_given_up(tiny_llama, count, tmp_path, monkeypatch):
    """Few enough to be possible, and far too many for the time that a child has here."""
    monkeypatch.setattr(model_trial, "LIMITS", Limits(seconds=0.2, megabytes=500))
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    edit_json(model / "config.json", num_hidden_layers=999)
    refused(model, tmp_path / "out", count, "reading its configuration and tokenizer needs more than 0.2 s")


def test_more_layers_than_tensors_are_told_at_once(tiny_llama, count, tmp_path):
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    edit_json(model / "config.json", num_hidden_layers=10**9)
    words = "its config.json says num_hidden_layers 1000000000, its weights are 20 tensors"
    refused(model, tmp_path / "out", count, words)


def test_a_tokenizer_of_a_model_is_read_by_a_child_first(tiny_llama, count, tmp_path, monkeypatch):
    """Also by transformers, whose classes run it before `load_tokenizer` can look at it."""
    monkeypatch.setattr(model_trial, "LIMITS", Limits(seconds=1, megabytes=500))
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    part = {"type": "Sequence", "normalizers": [replace("a", "aa")] * 45}
    changed_tokenizer(tiny_llama, model, normalizer=part)
    refused(model, tmp_path / "out", count, "reading its configuration and tokenizer")
