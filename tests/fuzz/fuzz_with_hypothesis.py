"""Give every target bytes, text, JSON and changed examples that hypothesis makes up: `make fuzz`."""

import json
import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from faults.mutations import mutate_bytes, mutate_json  # noqa: E402
from targets import TARGETS  # noqa: E402

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def change(example: bytes, seed: int) -> bytes:
    draw = random.Random(seed)
    if example[:1] in (b"{", b"[") and b"}\n{" not in example and draw.random() < 0.5:
        return mutate_json(json.loads(example), draw)
    return mutate_bytes(example, draw)


@pytest.mark.parametrize("name", TARGETS)
def test_anything_is_read_or_refused_in_one_line(name):
    target = TARGETS[name]
    changed = st.integers(0, 2**32).map(lambda seed: change(target.example, seed))
    strategy = st.binary() | st.text().map(str.encode) | JSON.map(lambda value: json.dumps(value).encode()) | changed

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(data: bytes) -> None:
        target.call(data)

    check()
