"""Which texts belong together: union-find."""

from array import array

import numpy as np
from numpy.typing import NDArray


class Groups:
    """Union-find over the numbers below `count`, 4 bytes each; the root of a group is its smallest member."""

    def __init__(self, count: int) -> None:
        self._parents = array("i", range(count))
        self._view = np.frombuffer(self._parents, dtype=np.int32) if count else np.empty(0, dtype=np.int32)
        self._flat = True

    def root(self, place: int) -> int:
        parents = self._parents
        while parents[place] != place:
            parents[place] = place = parents[parents[place]]
        return place

    def merge(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._parents[high] = low
        self._flat &= low == high

    def roots(self) -> NDArray[np.int32]:
        """Return the root of every number: a view, true until the next merge."""
        while not self._flat:
            further = self._view[self._view]
            self._flat = np.array_equal(further, self._view)
            self._view[:] = further
        return self._view
