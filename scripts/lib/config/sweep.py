"""A grid of settings as named combinations: `sweep:` of the configuration becomes runs and variants."""

import heapq
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.core.files import dump_canonical_json, hash_text
from lib.training.methods import METHODS

# Words for the names of runs, which begin with the method: `lora-alpha-64`.
_SHORT_KEYS = {"lora_alpha": "alpha", "lora_dropout": "dropout", "num_train_epochs": "epochs"}


@dataclass(frozen=True)
class Run:
    """One training, or what was brought instead. group: its name without the seed; the runs of a group differ in luck.

    finetune: the section `finetune` of this run. trained, adapted: whether the workflow trains an adapter, and
    whether there is one to merge. merges: the folders of merged models that are compared, `merged` is made of the best.
    """

    group: str
    seed: int
    finetune: dict[str, Any]

    @property
    def trained(self) -> bool:
        return self.adapted and not self.finetune["adapter"]

    @property
    def adapted(self) -> bool:
        return not self.finetune["merged"] and METHODS[self.finetune["method"]].has_adapter

    @property
    def merges(self) -> tuple[str, ...]:
        if not self.adapted:
            return ()
        quantized = METHODS[self.finetune["method"]].quantizes_base
        return ("merged-original", "merged-dequantized") if quantized else ("merged",)

    @property
    def stages(self) -> tuple[str, ...]:
        """The PyTorch stages: what is scored before the ONNX builds, beside the untouched base."""
        adapter = ("adapter",) if self.adapted else ()
        merges = self.merges if len(self.merges) > 1 else ()
        merged = ("merged",) if METHODS[self.finetune["method"]].has_adapter else ()
        return adapter + merges + merged


def expand_runs(
    finetune: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    *,
    sample: int | None = None,
    sample_seed: int = 0,
) -> dict[str, Run]:
    """Return runs by name. finetune: the section as it stands; grid: values by key; seeds: of the training, at least
    one. sample: how many runs to draw from all of them, by `sample_seed`; None takes all.

    A run is named after its method and what the grid changes: `lora-r-8-seed-1`. Raises `ValueError` when two
    combinations get one name.
    """
    runs: dict[str, Run] = {}
    trainings = itertools.product(list_combinations(grid), seeds)
    for chosen, seed in trainings if sample is None else sample_trainings(trainings, sample, sample_seed):
        settings = {**finetune, **chosen}
        group = "-".join([_start(settings), *_words({key: chosen[key] for key in chosen if key != "method"})])
        name = f"{group}-seed-{seed}" if len(seeds) > 1 else group
        if name in runs:
            raise ValueError(f"sweep.finetune: two combinations are both called {name}")
        runs[name] = Run(group, seed, settings)
    return runs


def sample_trainings(
    trainings: Iterator[tuple[dict[str, Any], int]], count: int, seed: int
) -> list[tuple[dict[str, Any], int]]:
    """Return `count` random trainings, each what the grid chooses and its seed, in the order in which they were given.

    The order of the draw is that of hashes of `seed` and the training. So a larger sample holds every smaller one, and
    a training keeps its place in the draw when the grid gets more values.
    """

    def hash_training(one: tuple[int, tuple[dict[str, Any], int]]) -> str:
        return hash_text(dump_canonical_json([seed, *one[1]]))

    drawn = heapq.nsmallest(count, enumerate(trainings), key=hash_training)
    return [training for _, training in sorted(drawn, key=lambda one: one[0])]


def count_trainings(grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> int:
    """Return how many runs the whole grid has. seeds: of the training; none counts as one."""
    return math.prod(map(len, grid.values())) * max(1, len(seeds))


def expand_variants(
    variants: Mapping[str, Mapping[str, Any]], grids: Mapping[str, Mapping[str, Sequence[Any]]]
) -> dict[str, dict[str, Any]]:
    """Return variants by name: `int4` with the grid `block_size: [32, 64]` becomes `int4-block-size-32` and `-64`.

    Raises `ValueError` when two combinations get one name.
    """
    result: dict[str, dict[str, Any]] = {}
    for name, settings in variants.items():
        for chosen in list_combinations(grids.get(name, {})):
            full = "-".join([name, *_words(chosen)])
            if full in result:
                raise ValueError(f"sweep.variants: two combinations are both called {full}")
            result[full] = {**settings, **chosen}
    return result


def list_combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Return every choice of one value for each key, the last key changing fastest; one empty choice without keys."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def _start(finetune: Mapping[str, Any]) -> str:
    if not METHODS[finetune["method"]].has_adapter:
        return "base"
    return "given-adapter" if finetune["adapter"] else "given-merged" if finetune["merged"] else finetune["method"]


def _words(chosen: Mapping[str, Any]) -> list[str]:
    """Return `r-8`, `learning-rate-0-001`: keys and values with what a name may hold."""
    values = {
        _SHORT_KEYS.get(key, key): ("-".join(map(str, value)) if isinstance(value, list) else value)
        for key, value in chosen.items()
    }
    return [re.sub(r"[^a-z0-9]+", "-", f"{key}-{value}".lower()).strip("-") for key, value in values.items()]
