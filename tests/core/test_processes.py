"""Work in several processes: what one process gives, in the same order, also where something fails."""

import os
import signal
import time

import pytest

from lib.core.cli import UserError, fail
from lib.core.processes import map_in_order


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_the_order_of_the_items(processes):
    factor = 3

    def multiply(item):  # of no module: it cannot be pickled
        time.sleep(0.02 * (item % 3 == 0))
        return factor * item

    assert list(map_in_order(multiply, iter(range(20)), processes)) == [3 * item for item in range(20)]


def test_one_process_works_here_and_more_elsewhere():
    assert set(map_in_order(lambda item: os.getpid(), range(4), 1)) == {os.getpid()}
    assert os.getpid() not in set(map_in_order(lambda item: os.getpid(), range(4), 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_item_that_fails_is_told_behind_the_results_before_it(processes):
    def refuse(item):
        time.sleep(0.05 * (item == 3))
        return fail(f"item {item}") if item in (3, 4) else item

    found = map_in_order(refuse, range(9), processes)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="^item 3$"):
        next(found)


def test_a_killed_process_is_one_line_and_no_wait():
    with pytest.raises(UserError, match="one of its processes was killed; memory"):
        list(map_in_order(lambda item: os.kill(os.getpid(), signal.SIGKILL), range(9), 2))


def test_items_wait_until_they_are_needed():
    taken = []
    found = map_in_order(lambda item: item, (taken.append(item) or item for item in range(100)), 2)
    next(found)
    assert len(taken) < 10
    found.close()


def test_only_in_several_processes_tokenizers_start_no_threads(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    for processes, expected in ((1, {None}), (2, {"false"})):
        found = map_in_order(lambda item: os.environ.get("TOKENIZERS_PARALLELISM"), range(4), processes)
        assert set(found) == expected
