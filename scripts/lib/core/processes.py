"""Work on many items in several processes, the results in the order of the items."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from lib.core.cli import die_with_parent, fail

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items of each process that wait: memory stays small where results are taken slowly


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """Yield what a function returns for each item, in their order.

    The processes are forks of this one, so that the function may hold what cannot be pickled; items and results are.
    With one process nothing is forked. Raises what the function raises for an item, in order, and `UserError` when
    a process was killed.
    """
    if processes == 1:
        yield from map(function, items)
        return
    waiting = deque[Future[Result]]()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, _start, (function,)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(_call, item))
                if len(waiting) > _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            fail(
                "one of its processes was killed",
                "memory was probably short: close other programs, or use fewer --cores",
            )
        finally:
            for future in waiting:
                future.cancel()


_function: Callable[[Any], Any]  # of a forked process


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    die_with_parent()
    # The processes share the cores already: a tokenizer's own threads in each would only wait for one another.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _function = function


def _call(item: Any) -> Any:
    return _function(item)
