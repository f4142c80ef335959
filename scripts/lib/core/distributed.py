"""Several processes that train one adapter together (torch's DDP), started here or by a launcher.

A process that runs alone is a group of one: it starts nothing, and what is summed or gathered is its own.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

from lib.core.cli import die_with_parent

T = TypeVar("T")
_TIMEOUT = timedelta(days=30)  # the others wait as long as the first waits for a lock


def launch(arguments: argparse.ArgumentParser) -> None:
    """Start this program again as `--processes` processes on each node, through torchrun, and exit as they do.

    Returns where one process is enough, and in a process that a launcher has started. In a step of Slurm with several
    tasks (`srun -n 2 -N 2`) each task stands for a node.
    """
    args = arguments.parse_args()
    nodes = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if args.processes * nodes == 1 or "RANK" in os.environ:
        return
    die_with_parent()
    node = int(os.environ.get("SLURM_PROCID", "0")) if nodes > 1 else 0
    if args.log and node == 0:
        args.log.parent.mkdir(parents=True, exist_ok=True)
        args.log.write_bytes(b"")  # the processes append
    os.environ["OMP_NUM_THREADS"] = str(max(1, args.threads // args.processes))
    sys.exit(_run(args.processes, nodes, node))


def _run(processes: int, nodes: int, node: int) -> int:
    """Start the processes of this node as torchrun does.

    Returns 75 when they stopped with progress saved, 1 when one failed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    meeting: dict[str, Any]
    if nodes == 1:
        meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    else:
        job = int(os.environ.get("SLURM_JOB_ID", "0"))
        address = os.environ.get("MASTER_ADDR") or os.environ["SLURM_LAUNCH_NODE_IPADDR"]
        port = os.environ.get("MASTER_PORT") or 20_000 + job % 20_000
        meeting = {"rdzv_backend": "static", "rdzv_endpoint": f"{address}:{port}", "rdzv_configs": {"rank": node}}
    logging.disable(logging.CRITICAL)  # what went wrong the processes say themselves
    config = LaunchConfig(nodes, nodes, processes, run_id="train", max_restarts=0, **meeting)
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except ChildFailedError as error:
        return 75 if any(failure.exitcode == 75 for failure in error.failures.values()) else 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


def init() -> None:
    """Meet the other processes, if a launcher started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    import torch
    from accelerate import PartialState  # which the Trainer asks, too

    PartialState(cpu=not torch.cuda.is_available(), timeout=_TIMEOUT)


def get_rank() -> int:
    return _group().get_rank() if _group() else 0


def get_world_size() -> int:
    return _group().get_world_size() if _group() else 1


def get_local_world_size() -> int:
    """Return how many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _group() else 1


def wait_for_all() -> None:
    if group := _group():
        group.barrier()


def broadcast(value: T) -> T:
    """Return what the first process has; all others wait for it."""
    if not (group := _group()):
        return value
    values = [value]
    group.broadcast_object_list(values)
    return values[0]


def all_gather(value: T) -> list[T]:
    """Return the value of each process."""
    if not (group := _group()):
        return [value]
    values: list[Any] = [None] * get_world_size()
    group.all_gather_object(values, value)
    return values


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Return sums over all processes, number by number."""
    return [sum(numbers) for numbers in zip(*all_gather(list(values)), strict=True)]


def shard(rows: Sequence[T]) -> Sequence[T]:
    """Return the rows that fall to this process; `gather_shards` puts what comes of them together again."""
    return rows[get_rank() :: get_world_size()]


def gather_shards(found: Sequence[T]) -> list[T]:
    """Return what all processes found for their `shard`, in the order of the rows."""
    parts = all_gather(list(found))
    result: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        result[number :: len(parts)] = part
    return result


def _group() -> Any:
    """Return torch.distributed where there is a group; torch is not loaded to find that there is none."""
    group = sys.modules.get("torch.distributed")
    return group if group is not None and group.is_available() and group.is_initialized() else None
