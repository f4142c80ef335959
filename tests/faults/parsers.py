"""Changed files, each given to the script that reads its kind, in a process with limits of time and memory.

A kind has a workspace (that of a rule), a change and the scripts that read the changed file. The first changes of a kind
are hostile examples by hand (hostile_examples.py), the others are drawn by the seed. To add a kind, add it to KINDS.
"""

import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from faults import scripts_in_forks as forks
from faults.finished import ADAPTER, Job, environment, leaks, restored
from faults.hostile_examples import EXAMPLES, PIECES, write_gguf_model, write_rows_as
from faults.in_the_child import load_address, load_configuration, shorten_limits
from faults.mutations import flip, mutate_bytes, mutate_json, mutate_safetensors, mutate_text
from faults.script_faults import Outcome, judge_end
from support.workspaces import BASE, ROWS

AT_MOST = 60  # seconds
CHILD_AT_MOST = 12  # seconds of what slmflow itself has a child do, instead of up to 15 minutes
MEMORY_MB = 2000
TESTS = Path(__file__).resolve().parents[1]
FORMATS = ("json", "jsonl", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz")


class Scene(NamedTuple):
    """What a change works on. note: what the steps are told of it, such as which file was changed."""

    workspace: Path
    jobs: Mapping[str, Job]
    draw: random.Random
    number: int
    note: dict[str, str]


class Kind(NamedTuple):
    """rule: whose workspace is restored. steps: the scripts that read the changed file, one after the other."""

    name: str
    count: int
    rule: str
    change: Callable[[Scene], None]
    steps: Callable[[Scene], Iterator[list[str] | Callable[[], object]]]
    prepare: Callable[[Scene], None] = lambda scene: None
    others: tuple[str, ...] = ()

    @property
    def rules(self) -> tuple[str, ...]:
        """Those whose commands it needs."""
        return (self.rule, *self.others)


def run_case(jobs: Mapping[str, Job], kind: Kind, number: int, draw: random.Random, place: Path) -> Outcome:
    """Change a file, have it read, and say how it was taken; then what a whole one comes to, where it was accepted."""
    with restored(jobs[kind.rule], place) as workspace:
        scene = Scene(workspace, jobs, draw, number, {})
        write_configuration_as_json(workspace)
        kind.prepare(scene)
        for folder in (place, workspace, workspace / "results"):  # what writes outside finds where
            (folder / "outside").mkdir()
        examples = EXAMPLES.get(kind.name, [])
        if number < len(examples):
            examples[number](workspace, scene.note)
            scene.note["example"] = examples[number].__name__
        else:
            kind.change(scene)
        before = snapshot(place)
        ended = read(kind, scene, place)
        problems, how = judge_end(ended, ())
        problems += leaks(place, ended.said)
        problems += [f"{name} was written" for name in snapshot(place) - before]
        accepted, found = ended.code == 0, result(scene)
        if accepted and kind.name in BY_HASH and (other := changed_content(scene, kind)):
            problems.append(f"{other} was believed")
    if problems or not accepted:
        return Outcome(how, "; ".join(problems) or "refused in one line", not problems)
    same = found == undisturbed(jobs, kind, number, place)
    return Outcome(how, "same bytes" if same else "read as another valid file", True)


def write_configuration_as_json(workspace: Path) -> None:
    """Write the configuration as the changes read it: JSON is YAML."""
    path = workspace / "config.yaml"
    values = yaml.safe_load(path.read_bytes())
    path.unlink()
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")


def changed_content(scene: Scene, kind: Kind) -> str | None:
    """Return a file of the kind that says something else than the original; how JSON is written does not count."""
    for path in sorted((scene.workspace / "results").rglob(BY_HASH[kind.name])):
        original = Path(scene.jobs[kind.rule].workspace) / path.relative_to(scene.workspace)
        whole = original.read_bytes()
        if path.read_bytes() != whole and (path.is_symlink() or json.loads(path.read_bytes()) != json.loads(whole)):
            return path.name
    return None


def read(kind: Kind, scene: Scene, place: Path) -> forks.Ended:
    """Run the steps until one fails."""
    ended = forks.Ended(0, "", 0.0)
    for step in kind.steps(scene):
        ended = forks.run(step, scene.workspace, environment(place / "tmp"), limit, AT_MOST)
        if ended.code:
            break
        scene.note["said"] = ended.said
    return ended


def limit() -> None:
    forks.limit_memory(MEMORY_MB)
    shorten_limits(CHILD_AT_MOST)


_undisturbed: dict[str, str] = {}


def undisturbed(jobs: Mapping[str, Job], kind: Kind, number: int, place: Path) -> str:
    """Return what the whole file comes to. The note chooses nothing there: steps that follow it are of one result."""
    shutil.rmtree(place, ignore_errors=True)
    key = f"{kind.name} {number % len(FORMATS) if kind.name == 'rows' else ''}"
    if key not in _undisturbed:
        with restored(jobs[kind.rule], place) as workspace:
            scene = Scene(workspace, jobs, random.Random(0), number, {})
            write_configuration_as_json(workspace)
            kind.prepare(scene)
            ended = read(kind, scene, place)
            _undisturbed[key] = result(scene) if ended.code == 0 else f"not read: {ended.said[-300:]}"
    return _undisturbed[key]


def result(scene: Scene) -> str:
    """Return a hash of what the steps wrote into out/, and of what the last one said where it wrote nothing."""
    digest = hashlib.sha256(scene.note.get("said", "").encode() if not (scene.workspace / "out").exists() else b"")
    for path in sorted((scene.workspace / "out").rglob("*")):
        if path.is_file() and path.suffix != ".txt":
            digest.update(str(path.relative_to(scene.workspace)).encode() + path.read_bytes())
    return digest.hexdigest()


def snapshot(place: Path) -> set[str]:
    """Return files with size and time, without those that a script is asked to write."""
    asked = ("out", "results/logs", "results/runs", "work")
    found = set()
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        inside = name.partition("/")[2]
        if not name.startswith("tmp") and not inside.startswith(asked) and path.is_file() and not path.is_symlink():
            found.add(f"{name} {path.stat().st_size} {path.stat().st_mtime_ns}")
    return found | {path.name for folder in (place.parent, Path("/tmp")) for path in folder.glob("pwned*")}


def words_of(scene: Scene, rule: str, **changed: str) -> list[str]:
    """Return the recorded words of a rule's script, with other values of some options."""
    words = forks.arguments_of(scene.jobs[rule].command)
    for name, value in ({"log": f"out/{rule}.txt"} | changed).items():
        words[words.index(f"--{name.replace('_', '-')}") + 1] = value
    return words


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(change(whole))


def rewrite_json(path: Path, draw: random.Random) -> None:
    """Change a JSON file: mostly its values, sometimes its bytes."""
    structural = draw.random() < 0.8
    rewrite(path, lambda whole: mutate_json(json.loads(whole), draw) if structural else mutate_bytes(whole, draw))


# Configuration


def change_configuration(scene: Scene) -> None:
    path = scene.workspace / "config.yaml"
    if scene.draw.random() < 0.5:
        rewrite_json(path, scene.draw)
    else:
        source = scene.draw.choice(sorted((scene.workspace / "examples").glob("*.yaml")))
        path.write_bytes(mutate_text(source.read_bytes(), scene.draw, PIECES["configuration"]))


def read_configuration(scene: Scene) -> Iterator[Callable[[], object]]:
    yield load_configuration


def change_address(scene: Scene) -> None:
    """Put an address that is changed in some places into the configuration."""
    section, key, address = scene.draw.choice(PIECES["addresses"])
    text = address
    for _ in range(scene.draw.randint(1, 3)):
        place, piece = scene.draw.randrange(len(text) + 1), scene.draw.choice(PIECES["in addresses"])
        text = text[:place] + piece + text[place + scene.draw.choice([0, 1, 5]) :]
    values = json.loads((scene.workspace / "config.yaml").read_bytes())
    values[section] = {name: value for name, value in values[section].items() if name not in ("files", "path")}
    values[section] |= {key: text, "sha256": "0" * 64} if key == "source" else {key: {"id": text, "revision": "0" * 40}}
    (scene.workspace / "config.yaml").write_text(json.dumps(values), encoding="utf-8")


def read_address(scene: Scene) -> Iterator[Callable[[], object]]:
    yield load_address


# Rows


def write_whole_rows(scene: Scene) -> None:
    suffix = FORMATS[scene.number % len(FORMATS)]
    scene.note["rows"] = f"rows.{suffix}"
    rows = json.loads((scene.workspace / ROWS).read_text(encoding="utf-8"))
    write_rows_as(scene.workspace / scene.note["rows"], rows)


def change_rows(scene: Scene) -> None:
    path = scene.workspace / scene.note["rows"]
    if path.suffix == ".json" and scene.draw.random() < 0.6:
        rewrite_json(path, scene.draw)
    elif path.suffix in (".jsonl", ".csv", ".tsv"):
        rewrite(path, lambda whole: mutate_text(whole, scene.draw, PIECES["rows"]))
    else:
        rewrite(path, lambda whole: mutate_bytes(whole, scene.draw))


def read_rows(scene: Scene) -> Iterator[list[str]]:
    found = scene.note["rows"]
    settings = {"source": {"files": [found]}, "unreadable": "reject" if scene.number % 2 else "error", "versions": {}}
    script = forks.arguments_of(scene.jobs["fetch_data"].command)[0]
    yield [
        script,
        "--settings",
        json.dumps(settings),
        "--files",
        found,
        "--output",
        "out/rows.jsonl",
        "--log",
        "out/log.txt",
    ]


# Models


def change_template(scene: Scene) -> None:
    path = scene.workspace / "results/base/chat_template.jinja"
    rewrite(path, lambda whole: mutate_text(whole, scene.draw, PIECES["templates"]))


def read_template(scene: Scene) -> Iterator[list[str]]:
    names = {name: f"out/{name}" for name in ("train", "validation", "test", "template")}
    yield words_of(scene, "render_corpus", **names)


def change_tokenizer(scene: Scene) -> None:
    name = scene.draw.choice(
        ["tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"]
    )
    rewrite_json(scene.workspace / BASE / name, scene.draw)


def read_tokenizer(scene: Scene) -> Iterator[list[str]]:
    yield words_of(scene, "fetch_tokenizer", output="out/tokenizer")
    names = {name: f"out/{name}.json" for name in ("audit", "rejected", "kept")}
    yield words_of(scene, "audit_data", tokenizer="out/tokenizer", **names)


def change_safetensors(scene: Scene) -> None:
    rewrite(scene.workspace / BASE / "model.safetensors", lambda whole: mutate_safetensors(whole, scene.draw))


def read_model(scene: Scene) -> Iterator[list[str]]:
    yield words_of(scene, "fetch_model", output="out/base")


def write_whole_gguf(scene: Scene) -> None:
    write_gguf_model(scene.workspace / BASE, scene.workspace / "model.gguf")


def change_gguf(scene: Scene) -> None:
    """Change the head, where names, types and lengths are; lengths by a huge number."""
    path = scene.workspace / "model.gguf"
    how = scene.draw.choice(["flip", "flip", "bytes", "length", "text"])
    most = path.read_bytes().find(b"general.quantization_version") + 4000
    if how == "flip":
        rewrite(path, lambda whole: flip(whole, scene.draw, scene.draw.choice([1, 3]), most))
    elif how == "bytes":
        rewrite(path, lambda whole: mutate_bytes(whole, scene.draw))
    elif how == "text":
        rewrite(path, lambda whole: whole.replace(b"llama", scene.draw.choice([b"lla\0a", b"phi3 ", b"llamb"]), 1))
    else:
        place = scene.draw.randrange(8, 3000)
        huge = struct.pack("<Q", scene.draw.choice([2**62, 2**63, 2**32, 2**40]))
        rewrite(path, lambda whole: whole[:place] + huge + whole[place + 8 :])


def read_gguf(scene: Scene) -> Iterator[list[str]]:
    yield words_of(scene, "fetch_model", path="model.gguf", output="out/base")


def bring_adapter(scene: Scene) -> None:
    own = scene.workspace / "results/runs"
    shutil.copytree(next(own.glob("*/adapter")), scene.workspace / ADAPTER)


def change_adapter(scene: Scene) -> None:
    if scene.draw.random() < 0.7:
        rewrite_json(scene.workspace / ADAPTER / "adapter_config.json", scene.draw)
    else:
        rewrite(
            scene.workspace / ADAPTER / "adapter_model.safetensors", lambda whole: mutate_safetensors(whole, scene.draw)
        )


def read_adapter(scene: Scene) -> Iterator[list[str]]:
    yield words_of(scene, "fetch_adapter", adapter="out/adapter")
    yield words_of(scene, "merge_adapter", adapter="out/adapter", merged="out/merged")


# What slmflow writes, from somebody else


def change_manifest(scene: Scene) -> None:
    rule = scene.draw.choice([rule for rule in READ_MANIFESTS if rule in scene.jobs])
    inputs = [path for path in scene.jobs[rule].inputs if path.endswith(".manifest.json")]
    scene.note["rule"] = rule
    rewrite_json(scene.workspace / scene.draw.choice(inputs), scene.draw)


def read_manifests(scene: Scene) -> Iterator[list[str]]:
    """Run a rule that reads it, then hold everything against the lineage."""
    if rule := scene.note.get("rule"):
        yield words_of(scene, rule, output=f"out/{rule}")
        shutil.rmtree(scene.workspace / "out")
    yield ["scripts/trace_lineage.py", "--verify"]


def change_lineage(scene: Scene) -> None:
    rewrite_json(scene.workspace / "results/lineage.json", scene.draw)


def read_lineage(scene: Scene) -> Iterator[list[str]]:
    yield ["scripts/trace_lineage.py", "results/gate.json"]
    yield ["scripts/trace_lineage.py", "--verify"]


def change_package(scene: Scene) -> None:
    folder = scene.workspace / "results/model"
    names = [
        "genai_config.json",
        "genai_config.json",
        "template.json",
        "template.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    name = scene.draw.choice([name for name in [*names, "model.onnx"] if (folder / name).is_file()])
    if name == "model.onnx":
        rewrite(folder / name, lambda whole: mutate_bytes(whole, scene.draw))
    else:
        rewrite_json(folder / name, scene.draw)


def read_package(scene: Scene) -> Iterator[list[str]]:
    yield ["scripts/predict.py", "--model", "results/model", "--threads", "1", "--json", "Nobody had told him."]


READ_MANIFESTS = ("keep_selected", "package_model", "assemble_model")
# Of these every change of what they say is found, by hashes.
BY_HASH = {"lineage": "lineage.json", "manifests": "*.manifest.json"}
KINDS = [
    Kind("configuration", 60, "audit_data", change_configuration, read_configuration),
    Kind("addresses", 50, "audit_data", change_address, read_address),
    Kind("rows", 84, "audit_data", change_rows, read_rows, write_whole_rows),
    Kind("templates", 50, "render_corpus", change_template, read_template),
    Kind("tokenizers", 50, "fetch_tokenizer", change_tokenizer, read_tokenizer),
    Kind("safetensors", 50, "fetch_model", change_safetensors, read_model),
    Kind("GGUF", 50, "fetch_model", change_gguf, read_gguf, write_whole_gguf),
    Kind("adapters", 50, "merge_adapter", change_adapter, read_adapter, bring_adapter, ("fetch_adapter",)),
    Kind("manifests", 50, "package_model", change_manifest, read_manifests),
    Kind("lineage", 50, "package_model", change_lineage, read_lineage),
    Kind("packaged models", 50, "package_model", change_package, read_package),
]
