"""What README and docs say can be done: links lead somewhere, commands start, configurations are valid."""

import ast
import functools
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from lib.config.schema import Config
from lib.config.variants import Section

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "src/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "profiles").rglob("*.md")),
    *sorted((ROOT / "src/docs").glob("*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

README_BYTES = 9000
# Files and folders that a reader makes or fills in.
READERS_OWN = {"mine.yaml", "profiles/mysite", "FILE", "...", "job.yaml"}
# What a page may tell a reader to start beside make, Snakemake and the project's scripts; no option of these is checked.
OTHER_PROGRAMS = {
    *("apptainer", "az", "curl", "docker", "dvc", "git", "pip", "python3"),
    *("awk", "sbatch", "scancel", "sinfo", "squeue", "xargs"),
    *("export", "for", "done", "echo"),
}
PROGRAMS = {"make", "pytest", "snakemake", ".venv/bin/snakemake", ".venv/bin/python", ".venv/bin/dvc"} | OTHER_PROGRAMS
SOURCES = {"data": ("files", "hub", "package", "source"), "base_model": ("path", "hub", "package", "source")}


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def inline(page: Path, kind: str) -> list[Token]:
    return [part for token in tokens(page) for part in token.children or () if part.type == kind]


# Links


@functools.cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    every = tokens(page)
    for token, text in itertools.pairwise(every):
        if token.type == "heading_open":
            words = "".join(part.content for part in text.children or ())
            anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            copies = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", one) is not None for one in found)
            found.add(f"{anchor}-{copies}" if copies else anchor)
    return found


def broken_links(page: Path) -> Iterator[str]:
    for link in inline(page, "link_open"):
        address = str(link.attrs["href"])
        if re.match(r"https://[\w.-]+(/|$)", address):
            continue
        path, _, anchor = address.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield address


@each_page
def test_every_link_leads_somewhere(page):
    assert list(broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `word`\n\n[a](#one-word) [b](#two) [c](page.md) [d](none.md) [e](page.md#x) [f](ftp://g)\n")
    assert list(broken_links(page)) == ["#two", "none.md", "page.md#x", "ftp://g"]


@each_page
def test_every_file_of_the_project_that_is_named_is_there(page):
    names = [part.content for part in inline(page, "code_inline")]
    pattern = r"(scripts|tests|docs|examples|profiles|benchmarks|envs|rules|src)/[\w./*-]*"
    for name in names:
        if re.fullmatch(pattern, name):
            assert list(ROOT.glob(name.rstrip("/"))), f"{page.name} names {name}"


# Commands


@functools.cache
def help_of(*command: str) -> str:
    done = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def split_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in a shell text, those in `$(...)` and behind `|` too."""
    text = re.sub(r"(^|\s)#\s.*", "", text.replace("\\\n", " "))
    text = re.sub(r"\s>\s*[\w.-]+", "", text)  # what a command writes to is no command
    for line in text.splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=";|&()<>")
        words.whitespace_split, words.commenters = True, ""
        command: list[str] = []
        for word in [*words, ";"]:
            if not re.fullmatch(r"[;|&()<>]+", word):
                command.append(word)
                continue
            if word.startswith("(") and command and command[-1].endswith("$"):
                command[-1] += "(...)"
                yield from [without_assignments(command)] if without_assignments(command) else []
            elif without_assignments(command):
                yield without_assignments(command)
            command = []


def without_assignments(command: list[str]) -> list[str]:
    while command and (re.match(r"\w+=", command[0]) or command[0] in ("do", "$(...)")):
        command = command[1:]
    return command


def commands(page: Path) -> list[list[str]]:
    """Return the commands in the shell blocks of a page and in its inline code."""
    blocks = [token.content for token in tokens(page) if token.type == "fence" and token.info == "bash"]
    short = [part.content for part in inline(page, "code_inline")]
    blocks += [text for text in short if " " in text and text.split()[0] in PROGRAMS]
    for text in short:
        if found := re.match(r"(scripts/)?(\w+\.py)( .*)?$", text):
            known = found[1] or (ROOT / "scripts" / found[2]).is_file()
            blocks += [f".venv/bin/python scripts/{found[2]}{found[3] or ''}"] if known else []
    return [command for block in blocks for command in split_commands(block)]


def faults(command: list[str]) -> Iterator[str]:
    """Yield what is wrong with a command."""
    program, *words = command
    if program == "make":
        yield from faults_of_make(words)
    elif program.endswith("snakemake"):
        yield from faults_of_snakemake(words)
    elif program == ".venv/bin/python":
        yield from faults_of_script(words)
    elif program in ("dvc", ".venv/bin/dvc"):
        yield from faults_of_dvc(words)
    elif program == "pytest":
        yield from (f"no file {word}" for word in words if word[0] != "-" and not (ROOT / word.split("::")[0]).exists())
    elif program not in OTHER_PROGRAMS:
        yield f"no program {program}"


def faults_of_make(words: list[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):(?!=)", makefile, flags=re.MULTILINE))
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for name in given:
        if not re.search(rf"^{name} \?=", makefile, flags=re.MULTILINE):
            yield f"make takes no {name}"
    named = [word for word in words if "=" not in word]
    yield from (f"make has no target {word}" for word in named if word not in targets)
    arguments = shlex.split(given.get("ARGS", ""))
    if {"run", "control"} & {*named}:
        yield from faults_of_snakemake(arguments)
    elif "test" in named:
        yield from faults(["pytest", *arguments])


def unknown_options(words: list[str], text: str) -> Iterator[str]:
    for word in words:
        option = word.split("=")[0]
        if re.match(r"--?[a-zA-Z]", word) and not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text):
            yield f"no option {option}"


def faults_of_snakemake(words: list[str]) -> Iterator[str]:
    yield from unknown_options(words, help_of("-m", "snakemake"))
    for option, value in itertools.pairwise(words):
        if option in ("--configfile", "--profile") and value not in READERS_OWN and not (ROOT / value).exists():
            yield f"{option}: no {value}"
        if option == "--until" and value not in RULES:
            yield f"no rule {value}"
        if option == "--set-resources" and value.partition(":")[0] not in RULES:
            yield f"no rule {value}"
        if option == "--config" and value != "...":
            for key, part in yaml.safe_load(re.sub("=", ": ", value, count=1)).items():
                yield from unknown_keys(Config, {key: part})


TEXT = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")])
RULES = set(re.findall(r"^rule (\w+):", TEXT, flags=re.MULTILINE))


def faults_of_script(words: list[str]) -> Iterator[str]:
    script, *rest = words
    if not (ROOT / script).is_file():
        yield f"no script {script}"
    else:
        yield from unknown_options(rest, help_of(script))


def faults_of_dvc(words: list[str]) -> Iterator[str]:
    for option, value in itertools.pairwise(words):
        if option in ("-S", "--set-param"):
            file, _, setting = value.partition(":")
            key, _, number = setting.partition("=")
            if not (ROOT / file).is_file():
                yield f"no file {file}"
            nested: object = number
            for name in reversed(key.split(".")):
                nested = {name: nested}
            yield from unknown_keys(Config, nested)


@each_page
def test_every_command_can_be_started(page):
    assert [(shlex.join(command), fault) for command in commands(page) for fault in faults(command)] == []


def test_commands_are_found_in_blocks_and_text():
    assert ["make", "test"] in commands(ROOT / "README.md")
    assert [".venv/bin/snakemake", "--cores", "all"] in commands(ROOT / "README.md")
    assert [".venv/bin/python", "scripts/adopt.py", "--pull"] in commands(ROOT / "docs/reproducibility.md")
    nested = ["az", "ad", "signed-in-user", "show", "--query", "id", "--output", "tsv"]
    assert nested in commands(ROOT / "profiles/azureml/README.md")


@each_page
def test_what_a_diff_replaces_stands_in_the_code(page):
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*.py"))
    for token in tokens(page):
        if token.type == "fence" and token.info == "diff":
            removed = [line[1:] for line in token.content.splitlines() if line.startswith("-")]
            assert [line for line in removed if line not in code] == []


@each_page
def test_shell_blocks_are_valid_shell(page):
    for token in tokens(page):
        if token.type == "fence":
            kinds = ("bash", "yaml", "diff", "json")
            assert token.info in kinds, f"{page.name}: a block without a language it is checked in"
        if token.type == "fence" and token.info == "bash":
            done = subprocess.run(["bash", "-n"], input=token.content, text=True, capture_output=True)
            assert done.returncode == 0, done.stderr


@each_page
def test_json_blocks_are_rows(page):
    """One behind the other, over as many lines as it takes."""
    for token in tokens(page):
        text = token.content.strip() if token.type == "fence" and token.info == "json" else ""
        while text:
            row, end = json.JSONDecoder().raw_decode(text)
            assert isinstance(row, dict)
            text = text[end:].lstrip()


@each_page
def test_commands_stand_in_shell_blocks_alone(page):
    """Else they would not be checked."""
    for token in tokens(page):
        if token.type == "code_block":
            words = [line.split()[0] for line in token.content.splitlines() if line.strip()]
            assert not PROGRAMS & {*words}, token.content


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("make rnu", "make has no target rnu"),
        ("make clean-work DAY=30", "make takes no DAY"),
        ('make run ARGS="--configfile examples/tone.yaml"', "--configfile: no examples/tone.yaml"),
        ('make run ARGS="--profil profiles/gpu"', "no option --profil"),
        ('make test ARGS="tests/test_nothing.py"', "no file tests/test_nothing.py"),
        (".venv/bin/snakemake --cores all --until audit", "no rule audit"),
        (".venv/bin/snakemake --config 'finetune={epoch: 2}'", "no key epoch"),
        ("PIP=1 .venv/bin/python scripts/predict.py --models x", "no option --models"),
        (".venv/bin/python scripts/predicted.py", "no script scripts/predicted.py"),
        (".venv/bin/dvc exp run -S config.yaml:finetune.rank=32", "no key rank"),
        ("snakmake -n", "no program snakmake"),
        ("X=$(snakmake -n)", "no program snakmake"),
        ("git status | snakmake", "no program snakmake"),
    ],
)
def test_a_wrong_command_is_found(text, fault):
    assert fault in [found for command in split_commands(text) for found in faults(command)]


# Configurations


def unknown_keys(section: type[Section], values: object) -> Iterator[str]:
    """Yield the keys of a nested mapping that the configuration does not know."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if key not in section.model_fields:
            yield f"no key {key}"
            continue
        kinds = getattr(section.model_fields[key].annotation, "__args__", (section.model_fields[key].annotation,))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from unknown_keys(kind, value)


def merge(below: dict, above: dict) -> dict:
    """Return a configuration with the keys of another one; a source of rows or model replaces the one that was there."""
    result = dict(below)
    for key, value in above.items():
        if key in SOURCES and {*SOURCES[key]} & {*value}:
            result[key] = {name: part for name, part in result[key].items() if name not in SOURCES[key]}
        nested = isinstance(value, dict) and isinstance(result.get(key), dict) and key != "variants"
        result[key] = merge(result[key], value) if nested else value
    return result


@each_page
def test_every_configuration_is_valid(page):
    base = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    base["data"].pop("labels")
    for token in tokens(page):
        if token.type == "fence" and token.info == "yaml":
            text = re.sub(r"sha256: \.\.\.", f"sha256: '{'0' * 64}'", token.content)
            values = yaml.safe_load(text)
            whole = merge(base, readers_rows(values))
            if whole["task"] == "generation" and "gate" not in values:
                del whole["gate"]  # the demo's, of classification
            if "conversation" in whole["data"]:  # which brings its own target and question
                whole = whole | {"data": {k: v for k, v in whole["data"].items() if k != "target"}}
                whole["corpus"] = {"max_length": 1024}
            Config.model_validate(whole)


def readers_rows(values: dict) -> dict:
    """Fit the part of a configuration that a page leaves out: target and template belong together."""
    target = values.get("data", {}).get("target")
    return (
        values
        if not target or "corpus" in values
        else merge(values, {"corpus": {"text_template": f"{{text}} {{{target}}}"}})
    )


# The pages themselves


def test_the_readme_is_for_the_first_half_hour():
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


def test_every_page_is_in_the_table_of_contents():
    contents = ROOT / "docs/README.md"
    linked = {str(link.attrs["href"]) for link in inline(contents, "link_open")}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_the_table_of_packages_is_complete():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where code goes")[2].partition("\n## ")[0]
    packages = {path.parent.name for path in (ROOT / "scripts/lib").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == packages


def test_settings_and_resources_of_the_executor_are_in_its_guide():
    tree = ast.parse((ROOT / "src/snakemake_executor_plugin_azureml/__init__.py").read_text(encoding="utf-8"))
    guide = (ROOT / "src/docs/further.md").read_text(encoding="utf-8")
    resources = set(re.findall(r"resource (azureml_\w+)", ast.unparse(tree)))
    assert len(resources) >= 7
    assert {name for name in resources if f"`{name}`" not in guide} == set()


# License, citation, changelog


def projects() -> list[dict]:
    return [tomllib.loads((ROOT / name).read_text())["project"] for name in ("pyproject.toml", "src/pyproject.toml")]


def test_the_license_is_apache_2_everywhere():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert (ROOT / "src/LICENSE").read_text() == text
    for project in projects():
        assert project["license"] == "Apache-2.0"
        assert project["authors"] == [{"name": "The slmflow developers"}]


RELEASES = re.findall(r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)


def test_the_changelog_begins_with_what_is_not_released():
    assert RELEASES[0] == ("Unreleased", "")
    for version, day in RELEASES[1:]:
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        date.fromisoformat(day)


def test_the_citation_file_fits_its_format_and_the_project():
    """Citation File Format 1.2.0: required keys, and those whose values follow from the project."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    known = (
        "cff-version message type title abstract authors version license keywords date-released repository-code url doi"
    )
    assert citation.keys() <= {*known.split()}
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["message"]
    assert citation["title"].startswith("slmflow")
    assert citation["authors"] == [{"name": "The slmflow developers"}]
    assert all(isinstance(word, str) for word in citation["keywords"])
    assert citation["license"] == projects()[0]["license"]
    assert citation["version"] == projects()[0]["version"]
    released = dict(RELEASES).get(citation["version"])
    assert str(citation.get("date-released")) == str(released), "the date of the release that the changelog has"
