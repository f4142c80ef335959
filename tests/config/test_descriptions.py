"""Every key of the configuration is explained where its reader looks: in the editor and in docs/configuration.md."""

import json
import re
from pathlib import Path

import pytest

from lib.config.schema import Config, build_json_schema
from lib.config.variants import Section

ROOT = Path(__file__).resolve().parents[2]


def sections(kind: type[Section] = Section) -> list[type[Section]]:
    """Return every section of the model that has keys."""
    below = [
        one for child in kind.__subclasses__() if child.__module__.startswith("lib.config.") for one in sections(child)
    ]
    return [*([kind] if kind is not Section else []), *below]


KEYS = [(section, key) for section in sections() for key in section.model_fields]


def test_all_sections_are_looked_at():
    schema = build_json_schema()
    assert {section.__name__ for section in sections()} == {*schema["$defs"], Config.__name__}
    assert len(KEYS) > 100


@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_a_key_has_a_description_of_whole_sentences(section, key):
    text = section.model_fields[key].description
    assert text, "write a docstring below the key"
    assert re.match(r"[A-Z`0-9]|sha256", text), text
    assert text.endswith("."), text
    assert text.count("`") % 2 == 0, text


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_a_section_has_a_description(section):
    assert section.__doc__
    assert section.__doc__.rstrip().endswith(".")
    assert section.__doc__ != Section.__doc__


def test_editor_and_reference_show_the_descriptions():
    schema = json.loads((ROOT / "examples/config.schema.json").read_text(encoding="utf-8"))
    reference = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", reference, flags=re.MULTILINE)
    for section, key in KEYS:
        text = section.model_fields[key].description
        part = schema if section is Config else schema["$defs"][section.__name__]
        assert part["properties"][key]["description"] == text
        assert (key, " ".join(text.split()).replace("|", "\\|")) in rows


def test_a_type_is_told_in_words():
    from lib.config.reference import render_reference

    table = render_reference(build_json_schema())
    for row in (
        "| `seed` | list of integers, at least 0 | `[]` |",
        "| `validation` | number, above 0, below 1 | `0.1` |",
        "| `target_modules` | `all-linear`, or list of strings | `all-linear` |",
        "| `variants` | mapping of names to [sections](#variantsname) | `{int4: {}}` |",
        "| `parameters` | integer, at least 1 | required |",
        "| `max_steps` | integer, at least 1 | not set |",
        "## `data.package` and `base_model.package`",
    ):
        assert row in table
