"""JSON of another form than the workflow writes, and what is no file in a results folder: one line, or passed over."""

import copy
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lib.core.cli import UserError
from lib.core.files import hash_text
from lib.core.forms import allow_open_object, read_form
from lib.provenance.lineage import find_broken_links, read_lineage
from lib.provenance.manifests import STAMP, read_manifest, write_manifest
from lib.workflow.snakemake_metadata import agree, find_recorded_outputs
from support.fetching import fetch_path

WRONG = [None, True, -1, 1.5, 10**30, "", "../x", "\x1b[31m", "\ud800", [], [[]], [None], {}, {"": {}}, {"../x": []}]
ZERO = "0" * 64
JOB = {
    "rule": "audit_data",
    "outputs": {"results/data/audit.json": ZERO},
    "record": {
        "rule": "audit_data",
        "input": ["rows.json", "results/data/rows.jsonl"],
        "input_checksums": {"rows.json": f"sha256:{ZERO}"},
        "params": [repr(json.dumps({"versions": {"numpy": "2.0"}}))],
        "code": "exec python",
        "record_format_version": 6,
        "container_img_url": None,
        "software_stack_hash": None,
    },
    "sources": {"model": ZERO},
}
LINEAGE = {"jobs": [JOB]}
MANIFEST = {"files": {"a.json": ZERO}, "size_bytes": 1, "inputs": {"base": ZERO}, "settings": {}}
REJECTED = {"run": "a", "variant": "b", "reason": "c"}
SELECTION = {"run": None, "variant": None, "rejected": [REJECTED]}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": 2, "vocab_size": 32,
          "max_position_embeddings": 64, "quantization_config": None, "tie_word_embeddings": False}  # fmt: skip
INDEX = {"weight_map": {"weight": "model-0.safetensors"}}
LOCK = {"stages": {"pipeline": {"outs": [{"path": "results/base", "size": 1}]}}}
GENAI = {"model": {"eos_token_id": [2]}}


def variants_of(value: Any) -> Iterator[Any]:
    """Yield the value with each of its parts, and the whole, replaced by each wrong one; and without each key."""
    yield from copy.deepcopy(WRONG)
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for part in variants_of(value[key]):
            changed = copy.deepcopy(value)
            changed[key] = part
            yield changed
        if isinstance(value, dict):
            yield {other: part for other, part in value.items() if other != key}
            yield {"../x" if other == key else other: part for other, part in value.items()}


def read_as_manifest(folder: Path, text: str) -> None:
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base.manifest.json").write_text(text)
    read_manifest(folder / "base")


def trace_lineage(folder: Path, text: str) -> None:
    """What trace_lineage.py, run.py and adopt.py do with it."""
    from trace_lineage import draw_tree

    (folder / "results/lineage.json").write_text(text)
    lineage = read_lineage(Path("results"))
    list(find_broken_links(lineage, lineage.by_output))
    for path in lineage.by_output:
        list(draw_tree(lineage, path))


def plan(folder: Path, text: str) -> None:
    (folder / "results/lineage.json").write_text(text)
    agree(Path("results"))


def read_selection(folder: Path, text: str) -> None:
    from lib.evaluation.selection import load_selection

    (folder / "selection.json").write_text(text)
    load_selection(folder / "selection.json")


def read_config(folder: Path, text: str) -> None:
    from lib.data.tokenizer import read_end_token_ids, read_max_tokens
    from lib.models.import_checkpoint import ModelSource, load_causal_config

    (folder / "config.json").write_text(text)
    read_end_token_ids(folder)
    read_max_tokens(folder)
    load_causal_config(ModelSource(folder, "model", [], None, {}))


def read_genai_config(folder: Path, text: str) -> None:
    from lib.data.tokenizer import read_end_token_ids

    (folder / "genai_config.json").write_text(text)
    read_end_token_ids(folder)


def read_weight_index(folder: Path, text: str) -> None:
    from lib.models.safetensors_streaming import read_headers

    (folder / "model.safetensors.index.json").write_text(text)
    (folder / "model-0.safetensors").write_bytes(b"")
    read_headers(folder, ["model-0.safetensors"], folder)


def read_lock(folder: Path, text: str) -> None:
    from adopt import read_sizes

    (folder / "dvc.lock").write_text(yaml.safe_dump(json.loads(text)))
    read_sizes(folder / "dvc.lock")


READERS: list[tuple[Callable[[Path, str], None], Any]] = [
    (read_as_manifest, MANIFEST),
    (trace_lineage, LINEAGE),
    (plan, LINEAGE),
    (read_selection, SELECTION),
    (read_config, CONFIG),
    (read_genai_config, GENAI),
    (read_weight_index, INDEX),
    (read_lock, LOCK),
]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A working folder, alone in its own, with results, and a file that the lineage names as an output."""
    root = tmp_path / "alone/project"
    (root / "results/data").mkdir(parents=True)
    (root / "results/data/audit.json").write_text("{}")
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize(("read", "document"), READERS, ids=lambda value: getattr(value, "__name__", ""))
def test_json_of_another_form_is_one_line(project, capfd, read, document):
    texts = [*map(json.dumps, variants_of(document)), '{"jobs": [', "\x00"]
    if read in (trace_lineage, plan):
        texts += ["[" * 100_000, "9" * 5_000]
    if read is read_lock:
        texts = [text for text in texts if text.startswith("{") and text.endswith("}")]
    wrong = [(text[:300], said) for text in texts if (said := find_wrong(read, project, text)) is not None]
    assert not wrong, "\n".join(f"{said}: {text}" for text, said in wrong[:10])
    assert "Traceback" not in capfd.readouterr().err


def find_wrong(read: Callable[[Path, str], None], project: Path, text: str) -> str | None:
    """Return what else than a line came of it, or None."""
    try:
        read(project, text)
    except UserError as error:
        if not str(error).startswith((str(project), "results/", "base", "model")) or len(str(error).splitlines()) != 1:
            return f"no line that names the file: {error}"
    except Exception as error:  # whatever it is, a person would get a traceback
        return repr(error)
    beside = {path.name for path in project.parent.iterdir()} - {project.name}
    return f"it wrote {beside}" if beside else None


def test_a_plan_says_that_it_does_not_believe_a_lineage_of_another_form(project, capsys):
    plan(project, "[]")
    line = "lineage: results/lineage.json: it must be an object; remove it and run the workflow again"
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize("rules", [1, 2, 300])
def test_jobs_made_from_their_own_outputs_and_endless_chains_are_refused(project, rules):
    """Who follows such a chain would not come to an end."""

    def job(number: int) -> dict[str, Any]:
        before = number - 1 if rules == 300 else (number + 1) % rules
        record = {**JOB["record"], "input": [f"results/{before}"]}
        return {**JOB, "outputs": {f"results/{number}": ZERO}, "record": record}

    (project / "results/lineage.json").write_text(json.dumps({"jobs": [job(number) for number in range(rules)]}))
    with pytest.raises(UserError, match="own output as input|follow one upon the other"):
        read_lineage(Path("results"))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("config.json", {"tie_word_embeddings": "no"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"quantization_config": [1]}),
        ("generation_config.json", {"eos_token_id": "2"}),
        ("generation_config.json", {"eos_token_id": -1}),
        ("generation_config.json", []),
        ("tokenizer_config.json", {"model_max_length": ""}),
        ("tokenizer_config.json", 3),
    ],
)
def test_a_base_folder_with_json_of_other_types_is_one_line(tiny_llama, tmp_path, name, changed):
    """Through the whole of fetch_model, and nothing stays of it."""
    from lib.models.safetensors_streaming import locate_weights

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    whole = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(whole | changed if isinstance(changed, dict) else changed))
    count = sum(weight.elements for weight in locate_weights(tiny_llama).values())
    with pytest.raises(UserError) as caught:
        fetch_path(folder, tmp_path / "out" / "base", count)
    assert str(caught.value).startswith(f"{folder}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["none"]


# What a lineage that came from elsewhere may not do


def lineage_of(path: str, sha256: str) -> str:
    return json.dumps({"jobs": [{**JOB, "outputs": {path: sha256}, "record": {**JOB["record"], "input": []}}]})


@pytest.mark.parametrize("name", ["{outside}", "../outside", "results/../../outside", "results//../../outside"])
def test_a_plan_writes_nothing_into_folders_outside_of_the_results(project, name):
    """It stamps the folders of outputs; a lineage that was pulled would have it stamp any."""
    outside = project.parent / "outside"
    outside.mkdir()
    plan(project, lineage_of(name.format(outside=outside), hash_text("{}")))
    assert not list(outside.iterdir())
    known = {path for path in find_recorded_outputs() if not path.startswith("results/data/")}
    assert not known


def test_an_output_behind_a_link_that_came_with_its_lineage_is_refused(project):
    (project / "outside/model").mkdir(parents=True)
    (project / "results/runs").symlink_to(project / "outside")
    with pytest.raises(UserError, match="runs/model is a link; replace the link by the file itself"):
        plan(project, lineage_of("results/runs/model", hash_text("{}")))
    assert not (project / "outside/model" / STAMP).exists()


def test_results_with_their_lineage_are_still_known(project, capsys):
    (project / "results/base").mkdir()
    (project / "results/base/a.json").write_text("{}")
    write_manifest(Path("results/base"), inputs={}, settings={})
    from lib.provenance.lineage import find_sha256

    plan(project, lineage_of("results/base", find_sha256(Path("results/base"))))
    assert "1 files in results came from elsewhere" in capsys.readouterr().err


# What is neither a file nor a folder


def put_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


def put_link_to_results(path: Path) -> None:
    path.symlink_to(Path("results").absolute())


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path.relative_to(Path.cwd())))


def put_name_that_is_no_text(path: Path) -> None:
    Path(f"{path}\udcff").write_text("")


ODDITIES = [put_dangling_link, put_loop, put_link_to_results, put_pipe, put_socket, put_name_that_is_no_text]


@pytest.mark.parametrize("put", ODDITIES)
def test_what_is_nobodys_output_stops_no_plan(project, capsys, put):
    for path in (project / "results/odd", project / "results/data/odd.json"):
        put(path)
    agree(Path("results"))
    assert "odd" not in capsys.readouterr().err
    assert not [path for path in find_recorded_outputs() if "odd" in path]


@pytest.mark.parametrize("put", [put_pipe, put_socket])
def test_a_plan_names_a_pipe_that_lies_where_a_job_writes(project, put):
    (project / "results/data/audit.json").unlink()
    put(project / "results/data/audit.json")
    with pytest.raises(UserError, match="results/data/audit.json: neither a file nor a folder, where a job writes"):
        plan(project, json.dumps(LINEAGE))


@pytest.mark.parametrize("name", ["summary.json", "base.manifest.json"])
def test_a_pipe_in_place_of_json_is_one_line_and_no_wait(project, name):
    os.mkfifo(project / name)
    with pytest.raises(UserError, match="it is not a regular file; remove it"):
        read_form(project / name, allow_open_object())
