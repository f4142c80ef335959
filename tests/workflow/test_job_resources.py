"""Memory, time and GPUs of a job, as rules ask for them."""

from types import SimpleNamespace

import pytest

from lib.hardware import resources as estimates
from lib.workflow.job_resources import (
    count_data_threads,
    count_processes,
    estimate_data_memory,
    estimate_data_minutes,
    estimate_score_minutes,
    grow_memory,
    measure_mb,
    reserve_gpus,
)


class Input(str):
    """A file of 3 MB in a storage."""

    is_storage = True
    storage_object = SimpleNamespace(size=lambda: 3_000_000)


class Local(str):
    is_storage = False


class Resources(SimpleNamespace):
    def get(self, name, default=None):
        return vars(self).get(name, default)


def test_size_counts_files_here_and_in_a_storage(tmp_path):
    (tmp_path / "rows").write_bytes(bytes(2_000_000))
    assert measure_mb([Local(tmp_path / "rows"), Input("az://rows"), Input("az://module.py")]) == 5.0, "code is no data"


def test_memory_grows_with_each_attempt_whether_it_is_a_number_or_a_function():
    fixed, by_input = grow_memory(100), grow_memory(lambda wildcards, input: 50 * len(input))
    assert fixed("wildcards", [1, 2], 1) == by_input("wildcards", [1, 2], 1) == estimates.grow_with_attempts(100, 1)
    assert fixed("wildcards", [], 2) == estimates.grow_with_attempts(100, 2) > 100


def test_rules_over_rows_get_what_the_rows_need():
    assert estimate_data_memory(None, [Input()], 1) == estimates.grow_with_attempts(estimates.estimate_data_mb(3.0), 1)
    assert estimate_data_minutes(None, [Input()], 2) == estimates.estimate_data_minutes(3.0, 2)
    evaluate = {"greedy_rows": 5, "max_new_tokens": 8, "batch_size": 4}
    asked = estimate_score_minutes(10**8, evaluate)(None, SimpleNamespace(rows=Input()), 1)
    assert asked == estimates.estimate_score_minutes(10**8, 3.0, evaluate, 1)


def test_many_rows_are_read_by_several_processes_and_rows_that_are_not_there_yet_by_one(tmp_path):
    (tmp_path / "rows").write_bytes(bytes(12_000_000))
    assert count_data_threads(None, [Local(tmp_path / "rows")]) == 4
    assert count_data_threads(None, [Input()]) == 1
    assert count_data_threads(None, [Local(tmp_path / "missing")]) == 1


def test_a_job_without_gpus_has_them_hidden():
    assert reserve_gpus("scripts/with_gpus.py", Resources(), 4) == ["env", "CUDA_VISIBLE_DEVICES="]


@pytest.mark.parametrize("asked", [{"gpu": 2}, {"gres": "gpu:a100:2"}, {"gpu": 4, "nodes": 2}])
def test_a_job_with_gpus_reserves_those_of_its_node_and_trains_on_each(asked):
    assert reserve_gpus("w.py", Resources(**asked), 4) == ["python", "w.py", 2]
    assert count_processes(None, Resources(**asked)) == 2


def test_on_several_nodes_the_command_is_started_on_each():
    asked = Resources(gpu=2, nodes=2, tasks=2, mpi="srun --mpi=none")
    launched = ["srun", "--mpi=none", "-n", 2, "-N", 2, "--cpus-per-task=4"]
    assert reserve_gpus("w.py", asked, 4) == [*launched, "python", "w.py", 1]


def test_without_gpus_one_process_trains():
    assert count_processes(None, Resources()) == 1
