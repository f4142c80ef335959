"""The base model from a folder, from a hub (real HTTP on loopback) and from a package; whole or not at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.provenance.manifests import build_manifest_path, read_manifest
from support.fake_hub import COMMIT, FakeHub
from support.fetching import download, edit_json, fetch_path, no_tokenizer, parameters, refused
from support.paths import ROOT


@pytest.fixture
def model(tiny_phi3, tmp_path) -> Path:
    """A copy of the tiny Phi-3 to break; fetched from by its path."""
    return Path(shutil.copytree(tiny_phi3, tmp_path / "model"))


@pytest.fixture(scope="session")
def counts(tiny_phi3, tiny_llama) -> dict[str, int]:
    return {"phi3": parameters(tiny_phi3), "llama": parameters(tiny_llama)}


def fetch_hub(
    hub: FakeHub, tmp_path: Path, count: int, *, revision=COMMIT, **environment
) -> subprocess.CompletedProcess:
    """Fetch the model a/b in a process of its own: HF_ENDPOINT is read when huggingface_hub is imported."""
    settings = {"source": {"hub": {"id": "a/b", "revision": revision}}, "parameters": count, "versions": {}}
    out = tmp_path / "base"
    command = [sys.executable, ROOT / "scripts" / "fetch_model.py", "--settings", json.dumps(settings)]
    command += ["--tokenizer", no_tokenizer(tmp_path), "--output", out, "--log", tmp_path / "log.txt"]
    environment = hub.environment(tmp_path / "home", **environment)
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)


def assert_refused(done: subprocess.CompletedProcess, tmp_path: Path, message: str) -> None:
    """One error line, exit code 1, and nothing that looks finished."""
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("downloading")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("base")]


# From a folder


@pytest.mark.parametrize("name", ["phi3", "llama"])
def test_a_folder_is_copied_whole(request, counts, tmp_path, name):
    source = request.getfixturevalue(f"tiny_{name}")
    manifest = fetch_path(source, tmp_path / "base", counts[name])
    out = tmp_path / "base"
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert (out / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()
    assert (out / "chat_template.jinja").is_file()
    assert parameters(out) == counts[name]
    assert {key: manifest[key] for key in ("source_format", "weights_were_quantized", "parameters", "dtype")} == {
        "source_format": "safetensors",
        "weights_were_quantized": None,
        "parameters": counts[name],
        "dtype": "float32",
    }
    assert not (out / "model.safetensors").samefile(source / "model.safetensors")  # the user's files stay theirs


def test_two_fetches_are_equal_byte_for_byte(tiny_llama, counts, tmp_path):
    first = fetch_path(tiny_llama, tmp_path / "one" / "base", counts["llama"])
    moved = shutil.copytree(tiny_llama, tmp_path / "elsewhere")
    assert fetch_path(moved, tmp_path / "two" / "base", counts["llama"]) == first


@pytest.mark.parametrize("with_index", [True, False])
def test_shards_are_kept_with_or_without_an_index(tiny_llama, counts, tmp_path, with_index):
    from transformers import AutoModelForCausalLM

    source = Path(shutil.copytree(tiny_llama, tmp_path / "sharded"))
    (source / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(source, max_shard_size="200KB")
    index = source / "model.safetensors.index.json"
    assert index.is_file()
    if not with_index:
        index.unlink()
    manifest = fetch_path(source, tmp_path / "base", counts["llama"])
    assert sum(name.endswith(".safetensors") for name in manifest["files"]) > 1
    before = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_a_missing_shard_is_noticed(tiny_llama, counts, tmp_path):
    from transformers import AutoModelForCausalLM

    source = Path(shutil.copytree(tiny_llama, tmp_path / "sharded"))
    (source / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(source, max_shard_size="200KB")
    shard = sorted(source.glob("model-*.safetensors"))[0]
    shard.unlink()
    refused(source, tmp_path, counts["llama"], f"{shard.name} is missing")


def test_a_tied_head_that_is_stored_twice_is_kept_once(tiny_llama, counts, tmp_path):
    from safetensors.torch import load_file, save_file

    source = Path(shutil.copytree(tiny_llama, tmp_path / "twice"))
    weights = load_file(source / "model.safetensors")
    assert "lm_head.weight" not in weights
    head = weights["model.embed_tokens.weight"].clone()
    save_file({**weights, "lm_head.weight": head}, source / "model.safetensors", metadata={"format": "pt"})
    manifest = fetch_path(source, tmp_path / "base", counts["llama"])
    assert manifest["parameters"] == counts["llama"]
    kept = load_file(tmp_path / "base" / "model.safetensors")
    assert kept.keys() == weights.keys()
    assert all(kept[name].equal(weights[name]) for name in weights)
    assert "lm_head.weight" in load_file(source / "model.safetensors")

    save_file({**weights, "lm_head.weight": head + 1}, source / "model.safetensors", metadata={"format": "pt"})
    refused(source, tmp_path / "other", counts["llama"], "are tied in config.json but differ")


def test_two_models_in_one_folder_are_not_mixed(model, counts, tmp_path):
    (model / "model.safetensors").rename(model / "fp16.safetensors")
    shutil.copy(model / "fp16.safetensors", model / "fp32.safetensors")
    refused(model, tmp_path / "out", counts["phi3"], "is in fp16.safetensors and in fp32.safetensors")
    (model / "fp32.safetensors").unlink()
    assert "model.safetensors" in fetch_path(model, tmp_path / "base", counts["phi3"])["files"]


def test_a_maker_s_own_layout_and_code_are_left_out(model, counts, tmp_path):
    edit_json(model / "config.json", auto_map={"AutoConfig": "configuration_phi3.Phi3Config"})
    edit_json(
        model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Tok", None]}, model_max_length=int(1e30)
    )
    (model / "configuration_phi3.py").write_text("raise SystemExit('code of a model was run')")
    (model / "tok.py").write_text("raise SystemExit('code of a model was run')")
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    manifest = fetch_path(model, tmp_path / "base", counts["phi3"])
    assert not [name for name in manifest["files"] if name.endswith((".py", ".bin")) or "consolidated" in name]
    assert "auto_map" not in json.loads((tmp_path / "base" / "config.json").read_text())
    tokenizer = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    assert "auto_map" not in tokenizer
    assert tokenizer["model_max_length"] == 512


def test_a_generation_config_is_made_where_there_is_none(model, counts, tmp_path):
    (model / "generation_config.json").unlink()
    fetch_path(model, tmp_path / "base", counts["phi3"])
    assert json.loads((tmp_path / "base" / "generation_config.json").read_text())["eos_token_id"] == 2


def only_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def remove_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def no_end_token(model: Path) -> None:
    edit_json(model / "generation_config.json", eos_token_id=None)
    edit_json(model / "config.json", eos_token_id=None)


def own_code_only(model: Path) -> None:
    edit_json(model / "config.json", model_type="novel", auto_map={"AutoConfig": "configuration_novel.NovelConfig"})
    (model / "configuration_novel.py").write_text("raise SystemExit('code of a model was run')")


def half_a_file(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


def short_embedding(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    short = {name: weight[:999].clone() if len(weight) == 1000 else weight for name, weight in weights.items()}
    save_file(short, model / "model.safetensors", metadata={"format": "pt"})
    edit_json(model / "config.json", vocab_size=999)


def classifier(model: Path) -> None:
    edit_json(model / "config.json", architectures=["Phi3ForSequenceClassification"])


def quantized(model: Path) -> None:
    edit_json(model / "config.json", quantization_config={"quant_method": "gptq"})


def two_ggufs(model: Path) -> None:
    (model / "model.safetensors").rename(model / "a-q4.gguf")
    (model / "b-q8.gguf").touch()


def broken_gguf(model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.gguf")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (only_pickle, "its weights are only in pytorch_model.bin; only safetensors and GGUF are loaded"),
        (remove_tokenizer, "it has no tokenizer"),
        (no_end_token, "no eos_token_id"),
        (own_code_only, "has no model_type 'novel': it needs code of its own"),
        (half_a_file, "model.safetensors is not a whole safetensors file"),
        (short_embedding, "its tokenizer has id 999, its embedding only 999 rows"),
        (two_ggufs, "it holds 2 GGUF files"),
        (broken_gguf, "a.gguf is not a whole GGUF file"),
        (lambda model: (model / "model.safetensors").unlink(), "it holds no weights"),
        (lambda model: (model / "config.json").unlink(), "it has no config.json"),
        (lambda model: (model / "config.json").write_text("{"), "not JSON"),
        (lambda model: edit_json(model / "config.json", model_type=None), "has no model_type None"),
        (classifier, "decoder-only"),
        (lambda model: edit_json(model / "config.json", model_type="t5", architectures=None), "decoder-only"),
        (quantized, "quantized (gptq)"),
        (lambda model: edit_json(model / "generation_config.json", eos_token_id=5000), "no token 5000"),
    ],
)
def test_a_model_that_cannot_serve_is_refused(model, counts, tmp_path, damage, message):
    damage(model)
    refused(model, tmp_path / "out", counts["phi3"], message)


def test_a_wrong_number_of_parameters_states_the_right_one(tiny_llama, counts, tmp_path):
    refused(tiny_llama, tmp_path, round(counts["llama"] * 1.02), f"write base_model.parameters: {counts['llama']}")
    fetch_path(tiny_llama, tmp_path / "base", round(counts["llama"] * 1.005))


def test_where_transformers_reads_a_tokenizer_otherwise_its_file_decides(model, counts, tmp_path, monkeypatch):
    """As with Llama 2's: its class in transformers builds a tokenizer of its own."""
    import transformers
    from tokenizers.pre_tokenizers import Digits, Sequence

    def misread(tokenizer_class):
        real = tokenizer_class.from_pretrained

        def changed(*args, **kwargs):
            tokenizer = real(*args, **kwargs)
            backend = tokenizer.backend_tokenizer
            backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
            return tokenizer

        monkeypatch.setattr(tokenizer_class, "from_pretrained", changed)

    misread(transformers.AutoTokenizer)
    fetch_path(model, tmp_path / "base", counts["phi3"])
    assert (tmp_path / "base" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    misread(transformers.PreTrainedTokenizerFast)
    refused(model, tmp_path / "out", counts["phi3"], "its tokenizer is ambiguous")


def test_a_tokenizer_of_sentencepiece_alone_says_how_to_convert_it(model, counts, tmp_path):
    (model / "tokenizer.json").unlink()
    edit_json(model / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    (model / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    words = (
        "its tokenizer is a SentencePiece file alone (tokenizer.model), which cannot be read; write its tokenizer.json"
    )
    refused(model, tmp_path / "out", counts["phi3"], words)


def test_a_failed_fetch_leaves_the_one_before(model, counts, tmp_path):
    fetch_path(model, tmp_path / "base", counts["phi3"])
    before = read_manifest(tmp_path / "base")
    (model / "model.safetensors").write_bytes(b"")
    with pytest.raises(Exception, match="not a whole safetensors file"):
        fetch_path(model, tmp_path / "base", counts["phi3"])
    assert read_manifest(tmp_path / "base") == before


# From a hub


def test_a_hub_model_is_fetched_at_its_commit(hub, tiny_llama, counts, tmp_path):
    files = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    hub.add("a/b", {**files, "README.md": b"#", "pytorch_model.bin": b"pickle", "model.onnx": b"onnx"})
    done = fetch_hub(hub, tmp_path, counts["llama"])
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "base")
    assert manifest["revision_commit"] == COMMIT
    assert manifest["parameters"] == counts["llama"]
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == files["model.safetensors"]
    for name in ("README.md", "pytorch_model.bin", "model.onnx"):
        assert hub.fetched(name) == 0
    # What is in the cache is not fetched again, and offline the cache is enough.
    asked = len(hub.requests)
    folder = download(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert len(hub.requests) == asked
    download(hub, tmp_path)
    assert hub.fetched("model.safetensors") == 1


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_offline_the_cache_is_believed_for_its_bytes(hub, tiny_llama, tmp_path, name):
    hub.add("a/b", tiny_llama)
    file = download(hub, tmp_path) / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(AssertionError, match=f"UserError: {name} of a/b came with hash"):
        download(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert download(hub, tmp_path).joinpath(name).read_bytes() == (tiny_llama / name).read_bytes()


@pytest.mark.parametrize(
    ("revision", "message"),
    [("f" * 40, f"a/b has no commit {'f' * 40}"), ("main", "revision 'main' of a/b is not a commit")],
)
def test_another_revision_is_refused(hub, tiny_llama, counts, tmp_path, revision, message):
    hub.add("a/b", tiny_llama)
    assert_refused(fetch_hub(hub, tmp_path, counts["llama"], revision=revision), tmp_path, message)
    assert hub.fetched("model.safetensors") == 0


def test_a_repository_that_is_not_there(hub, tmp_path):
    assert_refused(fetch_hub(hub, tmp_path, 1), tmp_path, "the hub has no repository a/b that you may read")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_with_another_hash_is_refused_and_fetched_anew(hub, tiny_llama, counts, tmp_path, name):
    repository = hub.add("a/b", tiny_llama, corrupt={name})
    assert_refused(fetch_hub(hub, tmp_path, counts["llama"]), tmp_path, f"{name} of a/b came with hash")
    repository.mend()
    assert (download(hub, tmp_path) / name).read_bytes() == (tiny_llama / name).read_bytes()


def test_a_cut_download_leaves_nothing_and_goes_on_next_time(hub, tiny_llama, counts, tmp_path):
    repository = hub.add("a/b", tiny_llama, cut={"model.safetensors": 100_000})
    assert_refused(fetch_hub(hub, tmp_path, counts["llama"]), tmp_path, "the download of a/b failed (HTTP 503)")
    repository.mend()
    finished = hub.fetched("tokenizer.json")
    folder = download(hub, tmp_path)
    assert hub.fetched("tokenizer.json") == finished == 1
    assert (folder / "model.safetensors").read_bytes() == (tiny_llama / "model.safetensors").read_bytes()


def test_a_connection_that_breaks_once_is_taken_up_where_it_broke(hub, tmp_path):
    content = os.urandom(12 << 20)  # the library writes pieces of 10 MB
    hub.add("a/b", {"config.json": b"{}", "model.safetensors": content}, cut_once={"model.safetensors": 11 << 20})
    assert (download(hub, tmp_path) / "model.safetensors").read_bytes() == content
    ranges = [range_ for method, path, range_ in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == [None, f"bytes={10 << 20}-"]


def test_pickled_weights_are_refused_before_anything_is_downloaded(hub, tiny_llama, tmp_path):
    files = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    hub.add("a/b", files)
    assert_refused(fetch_hub(hub, tmp_path, 1), tmp_path, "its weights are only in pytorch_model.bin")
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


def test_a_gated_model_needs_the_token_of_the_environment(hub, tiny_llama, counts, tmp_path):
    hub.add("a/b", tiny_llama, token="secret-of-mine")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("secret-of-mine")  # a stored login is not used
    done = fetch_hub(hub, tmp_path, counts["llama"])
    assert_refused(done, tmp_path, "a/b is gated and refused access; accept the terms on its page and set HF_TOKEN")
    done = fetch_hub(hub, tmp_path, counts["llama"], HF_TOKEN="wrong")
    assert_refused(done, tmp_path, "the token in HF_TOKEN has no access")
    done = fetch_hub(hub, tmp_path, counts["llama"], HF_TOKEN="secret-of-mine")
    assert done.returncode == 0, done.stderr
    written = [(tmp_path / "log.txt"), build_manifest_path(tmp_path / "base"), *(tmp_path / "base").iterdir()]
    assert not [path.name for path in written if b"secret-of-mine" in path.read_bytes()]


def test_no_network(monkeypatch):
    import huggingface_hub

    from lib.core.cli import UserError
    from lib.sources.huggingface import download_files

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the retries of the library
    with pytest.raises(UserError, match=r"a/b cannot be downloaded: ConnectError: .*check the network") as caught:
        download_files("a/b", COMMIT, lambda names: names)
    assert "\n" not in str(caught.value)
