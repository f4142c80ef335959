"""Big sweeps: constraints of wildcards that stay short."""

import itertools
import re

import pytest

from lib.workflow import one_of

GRID = [
    f"lora-r-{r}-learning-rate-{rate}-seed-{seed}/onnx-{variant}"
    for r, rate, seed, variant in itertools.product(
        (8, 16, 128), ("0-0001", "0-001", "1e-05"), range(20), ("int4", "int4-mixed", "x.y")
    )
]


@pytest.mark.parametrize(
    "names",
    [["a"], ["a", "a-b"], ["a-b", "a", "a-b-c"], ["a-1", "b-1", "a-2"], ["model", *GRID], [*GRID[:7], *GRID[90:95]]],
)
def test_a_constraint_matches_exactly_the_names(names):
    constraint = re.compile(f"(?P<one>{one_of(names)})$")  # as Snakemake puts it into the pattern of a file
    parts = {part for name in names for part in re.split("[-/]", name)}
    near = {f"{name}-{part}" for name in names for part in parts} | {name.rpartition("-")[0] for name in names}
    near |= {name.replace(".", "_") for name in names} | {f"x{name}" for name in names} | {"", "a-", "b-2", "a/b"}
    assert {name for name in {*names, *near, *GRID} if constraint.match(name)} == set(names)


def test_a_constraint_of_many_names_is_short():
    assert len(GRID) == 540
    assert len(one_of(GRID)) < 500


def test_without_a_name_nothing_matches():
    assert not re.match(one_of([]), "")
