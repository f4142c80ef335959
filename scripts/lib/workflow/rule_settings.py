"""The settings of each rule: the parts of the configuration that it needs, and the library versions it depends on."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lib.core.cli import call_or_exit, fail
from lib.core.files import dump_canonical_json
from lib.training.methods import choose_quantization

_LONGEST_ARGUMENT = 125_000  # bytes; the kernel's limit is 131,072, and quotes are added

Wildcards = Any
Section = Any | Callable[[Wildcards], Any]


def join_settings(
    versions: Mapping[str, str], packages: str | Callable[[Wildcards], str], sections: Mapping[str, Section]
) -> Callable[[Wildcards], str]:
    """Return the function that gives a rule its settings as one canonical JSON text.

    One text, because Snakemake compares several scalar params as an unordered set and misses swapped values. A
    function, because Snakemake takes braces in a text for wildcards. Without keys that are null: a new optional key of
    the configuration changes no settings, and so reruns nothing, until somebody sets it.
    packages: names in `versions`, separated by spaces. Packages and sections may be functions of the wildcards.
    """

    def resolve(wildcards: Wildcards) -> str:
        def find(value: Section) -> Any:
            return value(wildcards) if callable(value) else value

        own = drop_nulls({name: find(section) for name, section in sections.items()})
        text = dump_canonical_json({**own, "versions": {name: versions[name] for name in find(packages).split()}})
        return call_or_exit(check_argument_length, text)

    return resolve


def drop_nulls(value: Any) -> Any:
    """Return JSON data without the keys whose value is null."""
    if isinstance(value, Mapping):
        return {key: drop_nulls(inner) for key, inner in value.items() if inner is not None}
    return [drop_nulls(inner) for inner in value] if isinstance(value, list) else value


def check_argument_length(settings: str) -> str:
    """Return the settings, which become one argument of a command.

    Raises `UserError` when they are longer than Linux allows.
    """
    if len(settings.encode()) >= _LONGEST_ARGUMENT:
        fail("sweep: has too many runs for one selection", "split it into several configurations")
    return settings


def select_keys(section: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return some keys of a section of the configuration."""
    return {name: section[name] for name in names}


def name_quantization_package(finetune: Mapping[str, Any]) -> str:
    """Return what to add to a rule's packages when it loads a base model in 4 bits."""
    return " bitsandbytes" if choose_quantization(finetune) else ""


def omit_keys(section: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a section without some of its keys, such as those that a sweep sets again for each run."""
    return {name: value for name, value in section.items() if name not in names}
