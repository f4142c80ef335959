"""slmflow as a module of another workflow: whose configuration it has, where its results lie, what it may not share.

Snakemake puts the prefix of a module before each relative path of its rules. It tells the module neither that it is one
nor where its configuration comes from; both are read from Snakemake's own objects here (9.27.1), so this goes with the
version that the lock pins.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from snakemake.io import flag
from snakemake.path_modifier import PATH_MODIFIER_FLAG

from lib.config.loader import Module
from lib.config.schema import RESULTS
from lib.core.cli import fail

_CLAIMED = "slmflow_results"  # attribute of Snakemake's workflow: results folders of its modules, by their names


def find_module(workflow: Any, config: Mapping[str, Any]) -> Module | None:
    """Return the module as which slmflow is read, or None where it is the workflow itself.

    config: what Snakemake calls so there. Raises `UserError` for a module without a configuration, or one whose files
    lie in a storage.
    """
    modifier = workflow.modifier
    if modifier.is_main_snakefile():
        return None
    caller = _find_caller(workflow)
    module = Module(modifier.namespace, (), *_find_statement(caller, modifier.namespace))
    if not modifier.skip_configfile:
        fail(
            f"module {module.name}: has no config:",
            'add one, such as config: config["slmflow"]',
            at=caller,
            line=module.line,
        )
    if workflow.storage_settings.default_storage_provider is not None:
        fail(
            f"module {module.name}: its jobs cannot go through a storage",
            "run slmflow by itself where machines share no files",
            at=caller,
            line=module.line,
        )
    keys = next(_find_keys(workflow.modifier_stack[0].globals.get("config", {}), config), None)
    return module if keys is None else module._replace(keys=keys)


def find_results(workflow: Any, module: Module | None, results: str) -> str:
    """Return the results folder as it lies on disk: with the prefix that Snakemake puts before the paths of a module.

    Raises `UserError` for a prefix in which Snakemake's and our spelling of a path differ.
    """
    found = str(workflow.modifier.path_modifier.replace_prefix(results))
    if module is None:
        return found
    if found != os.path.normpath(found) or not re.match(RESULTS, found):
        what = f"module {module.name}: prefix: the results would lie in {found!r}"
        hint = "use letters from A to Z, digits, and the signs . _ / and -, and no ./ at its beginning"
        fail(what, hint, at=module.snakefile, line=module.line)
    return found


def claim_results(workflow: Any, module: Module | None, results: str) -> bool:
    """Return whether the module is read for the first time: each `use rule` reads it again.

    Raises `UserError` when the results folder is that of another module, or one lies in the other.
    """
    if module is None:
        return True
    claimed: dict[str, str] = vars(workflow).setdefault(_CLAIMED, {})
    if module.name in claimed:
        return False
    folder = Path(results).resolve()
    for name, other in claimed.items():
        place = Path(other).resolve()
        if folder in (place, *place.parents) or place in folder.parents:
            what = f"module {module.name}: its results folder {results} and {other}, that of module {name},"
            hint = "give one of the two another prefix: or results:"
            fail(f"{what} are one or lie in one another", hint, at=module.snakefile, line=module.line)
    claimed[module.name] = results
    return True


def is_first_module(workflow: Any) -> bool:
    """Return whether no other module of this workflow has claimed its results."""
    return len(getattr(workflow, _CLAIMED, {})) < 2


def keep_path(path: str) -> Any:
    """Return a path, of the user or of the project, that does not get the prefix of the module."""
    return flag(path, PATH_MODIFIER_FLAG)


def is_made(workflow: Any, path: str) -> bool:
    """Return whether a rule that was read before makes the file."""
    return any(rule.is_producer(path) for rule in workflow.rules)


def name_rule(workflow: Any, rule: str) -> str:
    """Return the name that a rule of ours has in the workflow: `slmflow_train_adapter`."""
    return str(workflow.modifier.modify_rulename(rule))


def _find_caller(workflow: Any) -> str:
    """Return the Snakefile with the module statement, relative to this folder where it lies in it."""
    path = str(workflow.modifier.parent_modifier.base_snakefile or workflow.main_snakefile)
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def _find_statement(snakefile: str, name: str) -> tuple[str, int | None]:
    """Return the Snakefile and the line of the module statement; None where that is in a file that it includes."""
    try:
        lines = Path(snakefile).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return snakefile, None
    found = (
        number for number, line in enumerate(lines, start=1) if re.match(rf"\s*module\s+{re.escape(name)}\s*:", line)
    )
    return snakefile, next(found, None)


def _find_keys(node: Any, wanted: Mapping[str, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where the very mapping `wanted` stands in a configuration."""
    if node is wanted:
        yield keys
    elif isinstance(node, Mapping):
        for key, inner in node.items():
            yield from _find_keys(inner, wanted, (*keys, str(key)))
