"""Functions that the Snakefile calls while it is read: paths, names, locked versions, GPUs."""

import glob
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

from snakemake.pathvars import PATHVAR_REGEX
from snakemake.settings.types import DeploymentMethod
from snakemake_interface_storage_plugins.io import WILDCARD_REGEX

from lib.core.cli import fail
from lib.data.readers import FORMATS, is_readable

# Signs with a meaning for Snakemake in every path; there is no way to escape them.
_READ_IN_PATHS = {
    "a wildcard": WILDCARD_REGEX,
    "a path variable": PATHVAR_REGEX,
    "a control character": re.compile(r"[\x00-\x1f\x7f]"),
    "no text": re.compile(r"[\ud800-\udfff]"),  # Python reads names that are not UTF-8 so
}
_LONG_TEXTS = 12_000  # characters; Snakemake writes commands from 65,535 on to a file, and each text may recur in one


def use_own_interpreter() -> None:
    """Put the folder of this interpreter first on PATH, so that `.venv/bin/snakemake` needs no activation."""
    folder = os.path.dirname(sys.executable)
    if os.environ["PATH"].split(os.pathsep)[0] != folder:
        os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]


@cache
def mend_ancient_inputs() -> None:
    """Make Snakemake plan the jobs that depend on a job that runs by `ancient` inputs alone.

    Snakemake does not examine the jobs that depend on one that runs, since they will run, too (9.27.1,
    `DAG.update_needrun`). With an ancient input they will not: a change there would be missed, and the run would end
    with half of its work done.
    """
    from snakemake.dag import DAG  # imports the workflow, which imports it

    search = DAG.bfs

    def bfs(dag: Any, direction: Any, *jobs: Any, **options: Any) -> Iterator[Any]:
        return search(dag, _WithoutAncient(direction) if direction is dag.depending else direction, *jobs, **options)

    DAG.bfs = bfs


class _WithoutAncient:
    """The jobs that depend on a job by an input that is not ancient."""

    def __init__(self, depending: Mapping[Any, Mapping[Any, Iterable[Any]]]) -> None:
        self._depending = depending

    def __getitem__(self, job: Any) -> dict[Any, Iterable[Any]]:
        found = self._depending[job].items()
        return {other: files for other, files in found if not all(file.is_ancient for file in files)}


@cache
def read_locked_versions(lock: Path) -> dict[str, str]:
    """Return the package versions in a requirements file with `name==version` lines; ignore markers and hashes."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    matches = (re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", line) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2].partition("+")[0] for match in matches if match}


def find_project_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder of the Snakefile as rules name it: relative, so that moving the folder reruns nothing.

    Raises `UserError` when Snakemake cannot take files from it.
    """
    whole, relative = os.path.abspath(folder), os.path.relpath(folder)
    # Snakemake puts this folder before `../envs/x.yaml` and formats the result.
    _check_signs(whole, "the folder of the Snakefile", _READ_IN_PATHS | {"a placeholder": re.compile(r"[{}]")})
    return Path(whole if relative.startswith("-") else relative)


def find_path(name: str, home: Path, key: str, made: Set[str] = frozenset()) -> str:
    """Find a path from the configuration: as it is written, or else relative to the folder of the Snakefile.

    The result never begins with a dash, so no command takes it for an option.
    made: paths that a rule makes. Raises `UserError`, with the configuration's `key`, when the path does not exist and
    is not made, or when Snakemake cannot take it.
    """
    _check_signs(name, key)
    path = str(Path(name) if Path(name).exists() or name in made else home / name)
    if not Path(path).exists() and path not in made:
        fail(f"{key}: {name} does not exist", "check the path, or put the file there")
    return f"./{path}" if path.startswith("-") else path


def list_data_files(names: Sequence[str], splits: Sequence[str], home: Path) -> list[tuple[str, str]]:
    """Return the files of `data.files`, each with its split or nothing: patterns and folders become what they hold.

    A folder stands for the files in it that rows are read from. Raises `UserError` for one that holds none, and for a
    file that is there twice.
    """
    found: list[tuple[str, str]] = []
    for name, split in itertools.zip_longest(names, splits, fillvalue=""):
        root = next((root for root in (Path(), home) if (root / name).exists()), None)
        if root is not None and not (root / name).is_dir():
            files = [name]
        elif root is not None:
            files = sorted(f"{name.rstrip('/')}/{path.name}" for path in (root / name).iterdir())
        else:
            roots = [Path(), home] if glob.has_magic(name) else []
            files = next((files for root in roots if (files := sorted(glob.glob(name, root_dir=root)))), [name])
        if files != [name]:
            files = [file for file in files if is_readable(Path(file)) and not Path(file).name.startswith(".")]
        if not files:
            fail(f"data.files: {name} holds no file with rows", f"rows are read from {FORMATS}")
        found += [(file, split) for file in files]
    known: dict[str, str] = {}
    for file, _ in found:
        place = os.path.realpath(next((root / file for root in (Path(), home) if (root / file).exists()), file))
        if place in known:
            other = f", also as {known[place]}" if known[place] != file else ""
            fail(f"data.files: {file} is there twice{other}", "name it once, and leave it out of the pattern or folder")
        known[place] = file
    return found


def _check_signs(path: str, what: str, signs: Mapping[str, re.Pattern[str]] = _READ_IN_PATHS) -> None:
    for kind, pattern in signs.items():
        if found := pattern.search(path):
            fail(f"{what}: {path!r} holds {found[0]!r}, for Snakemake {kind}", "rename the file or folder")


def check_unquoted(workflow: Any, texts: str) -> None:
    """Refuse names that Snakemake would write unquoted into its own commands, where a shell could run parts of them.

    It does so for conda, for jobs that it submits, and for commands so long that it writes them to a file.
    texts: everything that makes commands long. Raises `UserError`.
    """
    conda = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
    if workflow.local_exec and not conda and len(texts) < _LONG_TEXTS:
        return
    environments = workflow.deployment_settings.conda_prefix or ""
    for name in [os.getcwd(), workflow.main_snakefile, *workflow.overwrite_configfiles, environments]:
        _check_quoted(str(name), r"""['"$`\\]""")
    typed = [] if workflow.local_exec else workflow.config_settings.config_args or []
    for words in typed:  # with quotes around the names of files
        _check_quoted(words, r"[$`\\]")


def _check_quoted(text: str, signs: str) -> None:
    if found := re.search(signs, text):
        what = f"{text!r} holds {found[0]}, which Snakemake does not quote for conda, submitted jobs and long commands"
        fail(what, "rename the file or folder")


def choose_environment_file(group: str, resources: Mapping[str, Any]) -> str:
    """Return the conda environment of a rule, relative to rules/; one with CUDA builds where the rule is given a GPU.

    resources: what the command line or a profile sets for the rule.
    """
    return f"../envs/{'cuda/' if _get_resource(resources, 'gpu') not in (None, 0) else ''}{group}.yaml"


def _get_resource(resources: Mapping[str, Any], name: str) -> Any:
    """Return the value of one resource: the command line gives Snakemake's own type, its API a plain number."""
    value = resources.get(name)
    return getattr(value, "raw", value)


def match_names(names: Iterable[str]) -> str:
    """Return a wildcard constraint that matches exactly the names; without names it matches nothing.

    Shared parts of names occur in it once. Snakemake evaluates the constraints of a pattern for every file of every
    job: with 200 full names that would be a third of its planning time.
    """
    words = {tuple(re.split("(?=[-/])", name)) for name in names}
    return _alternatives(words) if words else r"(?!)"


def _alternatives(words: Set[tuple[str, ...]]) -> str:
    """Return a pattern for any of the words, each given in parts; parts with the same continuations are grouped."""
    ends: dict[str, set[tuple[str, ...]]] = {}
    for first, *rest in filter(None, words):
        ends.setdefault(first, set()).add(tuple(rest))
    together: dict[frozenset[tuple[str, ...]], list[str]] = {}
    for first in sorted(ends):
        together.setdefault(frozenset(ends[first]), []).append(re.escape(first))
    found = [_either(parts) + _alternatives(rest) for rest, parts in together.items()]
    return _either(found + [""] * (() in words))


def _either(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"(?:{'|'.join(choices)})"


def check_gpus(asked: Mapping[str, Mapping[str, object]]) -> None:
    """Raise `UserError` when the nodes of a job would not get equally many GPUs. asked: resources set, by rule."""
    for rule, resources in asked.items():
        gpu, nodes = _get_resource(resources, "gpu"), _get_resource(resources, "nodes")
        if isinstance(gpu, int) and isinstance(nodes, int) and nodes > 0 and gpu % nodes:
            what = f"set-resources: {rule}: gpu={gpu} cannot be shared evenly by nodes={nodes}"
            fail(what, f"gpu counts those of all nodes; make it a multiple of {nodes}")


def tell_unused_gpus(asked: Mapping[str, Mapping[str, object]]) -> None:
    """Tell users with NVIDIA GPUs that the run uses none of them. asked: resources set, by rule."""
    if shutil.which("nvidia-smi") and not any({"gpu", "gres"} & set(resources) for resources in asked.values()):
        print("this machine's GPUs are not used; to use them: --profile profiles/gpu", file=sys.stderr)
