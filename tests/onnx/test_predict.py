"""The packaged model, and asking it as users do."""

import argparse
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from lib.core.cli import UserError
from lib.core.files import write_json
from support.onnx_samples import LABELS, TEXTS, VARIANT, build, score, write_corpus
from support.packaged_model import PACKAGE_SETTINGS, SELECTION, package


@pytest.fixture(scope="module")
def workspace(tiny_phi3, tmp_path_factory):
    """A folder with a corpus, one build and the model packaged from it."""
    folder = tmp_path_factory.mktemp("workspace")
    write_corpus(folder / "corpus", tiny_phi3, truncation="right")
    build(tiny_phi3, folder / "corpus" / "rows.jsonl", folder / "runs" / "lora" / "onnx" / "int4")
    package(folder, tiny_phi3, folder / "corpus")
    return folder


@pytest.fixture(scope="module")
def model(workspace, tmp_path_factory):
    """A copy of the packaged folder alone, somewhere else."""
    return shutil.copytree(workspace / "model", tmp_path_factory.mktemp("elsewhere") / "shipped")


def variant_of(model: Path, folder: Path, **changes) -> Path:
    """A copy of the model whose template differs."""
    copy = shutil.copytree(model, folder / "variant")
    template = json.loads((copy / "template.json").read_text())
    (copy / "template.json").write_text(json.dumps(template | changes))
    return copy


def test_the_package_is_the_selected_build_with_template_and_card(workspace, tiny_phi3):
    onnx, model = workspace / "runs" / "lora" / "onnx" / "int4", workspace / "model"
    built = json.loads((onnx.parent / "int4.manifest.json").read_text())["files"]
    manifest = json.loads((workspace / "model.manifest.json").read_text())
    written = {"chat_template.jinja", "config.json", "generation_config.json", "inference_model.json"}
    assert manifest["files"].keys() == built.keys() | written | {"template.json", "README.md"}
    assert {name: manifest["files"][name] for name in built if name not in written} == {
        name: sha256 for name, sha256 in built.items() if name not in written
    }
    assert manifest["inputs"].keys() == {"assembled", "base", "selection", "summary"}
    assert (manifest["run"], manifest["variant"]) == ("lora", "int4")
    card = (model / "README.md").read_text()
    for text in (
        "joy, joyful, sadness, fear",
        "hub.id: someone/tiny",
        "- learning_rate: 0.001\n- r: 4",
        SELECTION["reason"],
        "selection.max_size_mb 200",
        "grid of the quantized weights: default",
        "**Do not ship it yet: 220 rows do not show it.**",
        "220 rows, scored once:",
        "- this model: accuracy 0.750, 95 % interval 0.690 to 0.810",
        "- TF-IDF + logistic regression: accuracy 0.700",
        "- untouched base model: accuracy 0.300, 95 % interval unknown",
        "unless `ORT_DISABLE_TELEMETRY=1` is set",
        "own tokenizer reads 7 of 1,200 rows otherwise than the model was trained: predict.py does not use it",
        built["model.onnx"],
    ):
        assert text in card
    assert "None" not in card
    assert "dequantized" not in card
    assert str(tiny_phi3.parent) not in card
    assert str(workspace) not in card


def test_what_no_build_has_is_not_packaged(workspace, tiny_phi3, tmp_path):
    onnx = shutil.copytree(workspace / "runs", tmp_path / "runs") / "lora/onnx/int4"
    config = json.loads((onnx / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = "evil.so"
    (onnx / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'custom_ops_library', which is not allowed"):
        package(tmp_path, tiny_phi3, workspace / "corpus")
    assert not (tmp_path / "model").exists()


HOSTILE_LABELS = ["<script>alert(1)</script>", "[x](javascript:alert(1))", "![](http://x/y.png)", "# joy\n---\n", "`a`"]


def test_the_card_shows_what_a_stranger_wrote_and_does_nothing_of_it(workspace, tiny_phi3, tmp_path):
    from markdown_it import MarkdownIt

    corpus = shutil.copytree(workspace / "corpus", tmp_path / "corpus")
    template = json.loads((corpus / "template.json").read_text())
    write_json(corpus / "template.json", template | {"labels": HOSTILE_LABELS})
    shutil.copytree(workspace / "runs", tmp_path / "runs")
    settings = {"base_model": {"license": HOSTILE_LABELS[0], HOSTILE_LABELS[3]: HOSTILE_LABELS[1:]}}
    selection = SELECTION | {"reason": f"{HOSTILE_LABELS[1]}\n\n# Heading"}
    card = (package(tmp_path, tiny_phi3, corpus, selection, **settings) / "README.md").read_text()
    page = MarkdownIt("gfm-like", {"linkify": False}).render(ModelCard(card).text)
    assert set(re.findall("<(\\w+)", page)) <= {"h1", "h2", "p", "ul", "li", "strong", "code"}
    assert page.count("<h1>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "[x](javascript:alert(1))" in page


def test_hubs_read_base_model_task_and_scores_of_the_card(workspace, tiny_phi3, tmp_path):
    stranger = {"base_model": {"hub": {"id": "a/b\nlicense: mit", "revision": "0" * 40}}}
    for settings, base in ((PACKAGE_SETTINGS, "someone/tiny"), (stranger, "a/b\nlicense: mit")):
        folder = tmp_path / base[:3].replace("/", "")
        shutil.copytree(workspace / "runs", folder / "runs")
        card = ModelCard((package(folder, tiny_phi3, workspace / "corpus", **{
            key: value for key, value in settings.items() if key not in ("runs", "versions")
        }) / "README.md").read_text())  # fmt: skip
        data = card.data
        assert (data.base_model, data.base_model_relation, data.license) == (base, "quantized", None)
        assert (data.pipeline_tag, data.library_name) == ("text-classification", "onnx")
        (accuracy,) = [one for one in data.eval_results if one.metric_type == "accuracy"]
        assert (accuracy.metric_value, accuracy.metric_name) == (0.75, "Accuracy (95 % interval 0.690 to 0.810)")


def test_the_card_says_that_the_base_was_quantized_before(workspace, tiny_phi3, tmp_path):
    from lib.provenance.manifests import write_manifest

    base = shutil.copytree(tiny_phi3, tmp_path / "base")
    write_manifest(base, inputs={}, settings={}, extra={"weights_were_quantized": "Q4_1"})
    shutil.copytree(workspace / "runs", tmp_path / "runs")
    card = (package(tmp_path, base, workspace / "corpus") / "README.md").read_text()
    assert "quantized to Q4_1" in card


def test_the_card_of_the_demo_names_the_licenses_of_data_and_base(workspace, tiny_phi3, tmp_path):
    """Those of config.yaml: `tests/report/test_notices.py` holds that they are the ones with notices."""
    package_sha256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    settings = {"base_model": {"package": {"sha256": package_sha256}}, "data": {"files": ["data/raw/tweets.json"]}}
    shutil.copytree(workspace / "runs", tmp_path / "runs")
    card = (package(tmp_path, tiny_phi3, workspace / "corpus", **settings) / "README.md").read_text()
    assert "- base model: SmolLM2-135M-Instruct by HuggingFaceTB" in card
    assert "MIT License, Copyright (c) 2016 C.J. Hutto" in card
    assert "Hutto" not in (workspace / "model" / "README.md").read_text()


def test_packaging_twice_gives_the_same_bytes(workspace, tiny_phi3, tmp_path):
    shutil.copytree(workspace / "runs", tmp_path / "runs")
    package(tmp_path, tiny_phi3, workspace / "corpus")
    first, second = ((place / "model.manifest.json").read_bytes() for place in (workspace, tmp_path))
    assert first == second


def test_nothing_selected_is_an_error_with_every_reason(workspace, tiny_phi3, tmp_path):
    nothing = SELECTION | {"run": None, "variant": None, "reason": "no variant keeps every constraint"}
    with pytest.raises(UserError, match=r"lora/big: 300\.0 MB is above selection\.max_size_mb 200") as error:
        package(tmp_path, tiny_phi3, workspace / "corpus", nothing)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_what_was_never_run_is_not_packaged(workspace, tiny_phi3, tmp_path):
    rows, output = workspace / "corpus" / "rows.jsonl", tmp_path / "runs" / "lora" / "onnx" / "int4"
    build(tiny_phi3, rows, output, **VARIANT | {"execution_provider": "cuda"})
    with pytest.raises(UserError, match="never run"):
        package(tmp_path, tiny_phi3, workspace / "corpus")


def ask(model: Path, *texts: str, file: Path | None = None, as_json: bool = True) -> None:
    import predict

    predict.main(argparse.Namespace(model=model, text=texts, file=file, json=as_json, threads=1))


def test_a_text_gives_label_and_probability(run_script, model, tmp_path):
    done = run_script("predict", "--model", model, TEXTS[0], TEXTS[1], cwd=tmp_path)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == 2
    for label, probability in lines:
        assert label in LABELS
        assert 1 / len(LABELS) <= float(probability) <= 1


def test_json_agrees_with_the_scores(model, workspace, tiny_phi3, tmp_path, capsys):
    import numpy as np

    onnx = workspace / "runs" / "lora" / "onnx" / "int4"
    scores = score(onnx, tiny_phi3, workspace / "corpus", tmp_path / "score.json")[1]
    ask(model, *TEXTS)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["input"] for answer in answers] == TEXTS
    for answer, expected in zip(answers, scores, strict=True):
        log_probs = np.array([expected["log_probs"][label] for label in LABELS])
        shares = np.exp(log_probs) / np.exp(log_probs).sum()
        assert answer["label"] == expected["predicted"]
        assert list(answer["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-6)
        assert answer["probability"] == max(answer["probabilities"].values())


def test_a_tokenizer_that_onnx_runtime_cannot_read_changes_no_answer(model, tmp_path, capsys):
    ask(model, *TEXTS)
    expected = capsys.readouterr().out
    other = variant_of(model, tmp_path)
    (other / "tokenizer_config.json").write_text('{"tokenizer_class": "OfAnotherLibrary"}')
    ask(other, *TEXTS)
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", '{"text": "He cried", "other": 1}\n{"text": 42}\n'),
        ("rows.json", '[{"text": "He cried"}, {"text": 42}]'),
        ("rows.csv", 'id,text\n1,He cried\n2,"42"\n'),
        ("rows.txt", "He cried\n42\n"),
        ("rows.txt", "\ufeffHe cried\r\n42"),
        ("rows.parquet", ["He cried", "42"]),
    ],
)
def test_files_of_every_kind_are_read_alike(model, tmp_path, name, content, capsys):
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"id": [1, 2], "text": content}), tmp_path / name)
    else:
        (tmp_path / name).write_text(content, newline="")
    ask(model, file=tmp_path / name)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["input"] for answer in answers] == ["He cried", "42"]


ODD_LINES = [
    "first\u2028of one",
    "form\x0cfeed",
    "\x85next\u2029line",
    "a\rreturn",
    "\x1c\x1d\x1e in it",
    "\ufeff last",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_line_of_a_file_gives_one_line_of_output(model, tmp_path, end, as_json, capsys):
    """Whatever else Unicode and Python take for the end of a line."""
    (tmp_path / "rows.txt").write_text(end.join(ODD_LINES) + end, encoding="utf-8", newline="")
    ask(model, file=tmp_path / "rows.txt", as_json=as_json)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ODD_LINES)
    if as_json:
        assert [json.loads(line)["input"] for line in lines] == [text.strip() for text in ODD_LINES]


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (
            {"answer": "Take a coat.\n\n\tGo\u2028now\x1b[2J", "stopped": True},
            r"Take a coat.\n\n\tGo\u2028now\u001b[2J",
        ),
        ({"answer": "", "stopped": False}, ""),
        ({"answer": r"C:\new é", "stopped": True}, r"C:\new é"),
        ({"label": "a\tb\x85c", "probability": 0.5, "probabilities": {}}, "a\\tb\\u0085c\t0.5000"),
    ],
)
def test_an_answer_is_one_line_and_exact_as_json(result, line):
    import predict

    assert predict.format_line(result) == line
    given = {"text": "x\u2029y"}
    assert len(predict.format_json(given, result).splitlines()) == 1
    assert json.loads(predict.format_json(given, result)) == {"input": "x\u2029y", **result}


@pytest.mark.parametrize(
    ("suffix", "library"), [(".parquet", "pyarrow"), (".parquet", "datasets"), (".xlsx", "openpyxl")]
)
def test_a_format_without_its_libraries_is_one_line(model, tmp_path, monkeypatch, suffix, library):
    (tmp_path / f"rows{suffix}").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == library else name)
    words = rf"rows\{suffix}: {suffix} is read with {library}, which is not installed; pip install {library}, or"
    with pytest.raises(UserError, match=words):
        ask(model, file=tmp_path / f"rows{suffix}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"text": "a"}\n{"tex": "b"}\n', "rows.jsonl:2: no column 'text'; it has tex"),
        ("rows.jsonl", '{"text": "a"}\n{"text": " "}\n', "rows.jsonl:2: empty text"),
        ("rows.jsonl", '{"text": ["a"]}\n', "rows.jsonl:1: column 'text' is a list; give text"),
        ("rows.jsonl", '{"text": "a"}\n{"text": \n', "rows.jsonl:2: not JSON"),
        ("rows.txt", "fine\nhello<|end|> you\n", "rows.txt:2: 'text' contains the control token '<|end|>'"),
        ("rows.txt", "fine\n\nfine\n", "rows.txt:2: empty text"),
        ("rows.txt", "fine\n\x0c\nfine\n", "rows.txt:2: empty text"),
        ("rows.txt", "one\rtwo\rthree\r", "rows.txt: its lines end with carriage returns alone"),
        ("rows.txt", "fine\nh\0llo\n", "rows.txt:2: 'text' contains a NUL character; take it out"),
        ("rows.jsonl", '{"text": "a"}\n{"text": "h\\u0000llo"}\n', "rows.jsonl:2: 'text' contains a NUL character"),
        ("rows.txt", "", "nothing to answer"),
    ],
)
def test_unusable_inputs_are_named_before_anything_is_answered(model, tmp_path, name, content, message, capsys):
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(UserError) as error:
        ask(model, file=tmp_path / name)
    assert message in str(error.value)
    assert capsys.readouterr().out == ""


def test_columns_that_were_optional_in_training_may_be_empty(model, tmp_path, capsys):
    template = json.loads((model / "template.json").read_text())
    place = template["prompt"].index({"column": "text"})
    prompt = [*template["prompt"][: place + 1], {"column": "input"}, *template["prompt"][place + 1 :]]
    copy = variant_of(model, tmp_path, prompt=prompt, columns=["text", "input"], optional_columns=["input", "text"])
    rows = [{"text": "He cried"}, {"text": "a", "input": None}, {"input": " b "}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ask(copy, file=tmp_path / "rows.jsonl")
    answers = [json.loads(line)["input"] for line in capsys.readouterr().out.splitlines()]
    texts = [{"text": "He cried", "input": ""}, {"text": "a", "input": ""}, {"text": "", "input": "b"}]
    assert answers == texts
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": ""}')
    with pytest.raises(UserError, match=r"rows.jsonl:2: empty text; at least one"):
        ask(copy, file=tmp_path / "rows.jsonl")


def test_wrong_calls_end_in_one_line(run_script, model, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"one\ntwo\nn\xe4chste\n")
    calls = {
        f"{tmp_path / 'nowhere'}: not a packaged model": {"model": tmp_path / "nowhere"},
        "nothing to answer": {},
        f"{tmp_path / 'none.csv'}: no such file": {"file": tmp_path / "none.csv"},
        f"{tmp_path / 'none.txt'}: no such file": {"file": tmp_path / "none.txt"},
        f"{tmp_path}: not a file": {"file": tmp_path},
        f"{tmp_path / 'latin.txt'}:3: not UTF-8": {"file": tmp_path / "latin.txt"},
    }
    for message, call in calls.items():
        with pytest.raises(UserError, match=re.escape(message)) as error:
            ask(**{"model": model, **call})
        assert "\n" not in str(error.value)
    done = run_script("predict", "--model", model, "  ", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: text 1: empty text")


def test_long_inputs_are_cut_as_in_training_or_refused(model, tmp_path, capsys, monkeypatch):
    import predict

    prompts = []
    classify = predict.classify
    monkeypatch.setattr(
        predict, "classify", lambda m, t, tp, found: (prompts.extend(found), classify(m, t, tp, found))[1]
    )
    words = " ".join(f"w{number}" for number in range(100))
    ask(model, words)
    ask(variant_of(model, tmp_path / "left", truncation="left"), words)
    assert "w0 " in prompts[0]
    assert "w99" not in prompts[0]
    assert "w99" in prompts[1]
    assert "w0 " not in prompts[1]
    assert [json.loads(line)["input"] for line in capsys.readouterr().out.splitlines()] == [words, words]
    with pytest.raises(UserError, match=r"text 1: \d+ tokens with its answer, the model takes 64; shorten"):
        ask(variant_of(model, tmp_path / "reject", truncation="reject"), words)


@pytest.mark.parametrize("side", ["right", "left", "reject"])
def test_of_a_huge_input_the_tokenizer_reads_no_more_than_can_matter(monkeypatch, side):
    import predict

    from lib.data.tokenizer import Tokenizer
    from lib.data.value_limits import compute_max_characters
    from support.tiny_models import train_tokenizer

    read = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: (read.append(len(text)), encode(self, text))[1])
    tokenizer = Tokenizer(train_tokenizer(["<e>"]), None, "<e>", frozenset([0]), ("<e>",), None, {})
    template = {
        "task": "classification",
        "target": "tone",
        "columns": ["phrase"],
        "prompt": [{"column": "phrase"}, {"text": "\n"}],
        "completion": [{"column": "tone"}, {"text": "<e>"}],
        "labels": ["joy"],
        "max_length": 16,
        "truncation": side,
    }
    one = predict.Input({"phrase": "first " + "a " * 1_000_000 + "last"}, "text 1")
    if side == "reject":
        with pytest.raises(UserError, match="text 1: 'phrase' has 2,000,010 characters, the model takes 16 tokens"):
            predict.render_fitting_prompt(one, dict(one.row), template, tokenizer)
        assert not read
    else:
        prompt = predict.render_fitting_prompt(one, dict(one.row), template, tokenizer)
        assert ("first" in prompt, "last" in prompt) == (side == "right", side == "left")
        assert max(read) <= compute_max_characters(16) + len("\njoy<e>")


def test_several_columns_need_a_table(model, tmp_path, capsys):
    template = json.loads((model / "template.json").read_text())
    prompt = [*template["prompt"][:1], {"column": "place.city"}, *template["prompt"]]
    two = variant_of(model, tmp_path, prompt=prompt, columns=["place.city", "text"])
    with pytest.raises(UserError, match=r"takes the columns place\.city, text; give them in a"):
        ask(two, "hello")
    (tmp_path / "rows.jsonl").write_text('{"text": "hello", "place": {"city": "Ulm"}}\n')
    ask(two, file=tmp_path / "rows.jsonl")
    assert json.loads(capsys.readouterr().out)["input"] == {"place.city": "Ulm", "text": "hello"}


def test_generation_prints_the_answer(model, tmp_path, capsys):
    generating = variant_of(model, tmp_path, task="generation", labels=None)
    ask(generating, "hello")
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"input", "answer", "stopped"}
    ask(generating, "hello", as_json=False)
    assert capsys.readouterr().out == answer["answer"] + "\n"


def test_a_broken_model_is_one_line(model, tmp_path):
    broken = variant_of(model, tmp_path)
    (broken / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=rf"^{re.escape(str(broken))}: ONNX Runtime cannot load it") as error:
        ask(broken, "hello")
    assert "\n" not in str(error.value)
