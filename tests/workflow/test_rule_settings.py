"""The settings of a rule: one text with exactly its own sections and versions."""

import json
import subprocess

import pytest

from lib.core.cli import UserError
from lib.workflow.rule_settings import (
    check_argument_length,
    join_settings,
    name_quantization_package,
    omit_keys,
    select_keys,
)

VERSIONS = {"torch": "2.9", "peft": "0.18", "numpy": "2.3"}


def test_settings_are_one_canonical_text_with_the_versions_that_a_rule_names():
    text = join_settings(VERSIONS, "peft torch", {"b": {"z": 1, "a": "{run}"}, "a": False})("wildcards")
    assert json.loads(text) == {"a": False, "b": {"a": "{run}", "z": 1}, "versions": {"peft": "0.18", "torch": "2.9"}}
    assert text == join_settings(VERSIONS, "torch peft", {"a": False, "b": {"a": "{run}", "z": 1}})("wildcards")


def test_keys_that_are_null_are_left_out_at_every_depth():
    text = join_settings(VERSIONS, "", {"a": None, "b": {"c": None, "d": [{"e": None, "f": 0}, None]}})("wildcards")
    assert json.loads(text) == {"b": {"d": [{"f": 0}, None]}, "versions": {}}


def test_sections_and_packages_may_follow_from_the_wildcards():
    settings = join_settings(VERSIONS, lambda run: run, {"name": lambda run: run.upper()})
    assert json.loads(settings("torch")) == {"name": "TORCH", "versions": {"torch": "2.9"}}


def test_a_package_that_is_not_locked_is_a_fault():
    with pytest.raises(KeyError, match="tensorflow"):
        join_settings(VERSIONS, "tensorflow", {})("wildcards")


def test_settings_that_are_too_long_end_the_program_in_one_line():
    with pytest.raises(SystemExit, match="^error: sweep: has too many runs for one selection"):
        join_settings(VERSIONS, "", {"runs": "x" * 130_000})("wildcards")


def test_the_longest_argument_still_starts_a_program():
    """Linux takes 128 KB in one argument."""
    subprocess.run(["true", check_argument_length("x" * 124_999)], check=True)
    with pytest.raises(UserError, match="sweep: has too many runs"):
        check_argument_length("é" * 65_000)


def test_keys_of_a_section():
    section = {"path": None, "hub": {"id": "a"}, "other": 1}
    assert select_keys(section, ("path", "hub")) == {"path": None, "hub": {"id": "a"}}
    assert omit_keys(section, ("path", "hub")) == {"other": 1}


def test_only_qlora_keeps_its_base_in_4_bits():
    finetune = {"method": "qlora", "quant_type": "nf4", "double_quant": False, "r": 8}
    assert name_quantization_package(finetune) == " bitsandbytes"
    assert name_quantization_package(finetune | {"method": "lora"}) == ""
