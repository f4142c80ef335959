"""Several processes train what one trains; a training stops before its time limit, and one alone holds its progress."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lib.core import distributed
from lib.core.cli import UserError
from lib.core.files import hash_file, read_json
from lib.training.batching import DistributedBatchSampler, EpochOrder, split_batch
from support.training import adapter_hash, make_corpus, train_command


def run(command: list[str], *more: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([*command, *more], capture_output=True, text=True, env=os.environ | environment)


# Several processes


@pytest.mark.parametrize(
    ("batch", "accumulation", "number", "own"),
    [
        (8, 4, 2, (8, 2)),  # less accumulation
        (8, 1, 2, (4, 1)),  # smaller batches where there is none
        (8, 3, 2, (6, 2)),
        (1, 4, 4, (1, 1)),
        (6, 1, 1, (6, 1)),
    ],
)
def test_all_processes_together_take_the_rows_that_one_takes(batch, accumulation, number, own):
    assert split_batch(batch, accumulation, number) == own


def test_rows_that_cannot_be_divided_are_refused():
    with pytest.raises(UserError, match=r"^finetune: 4 rows a step cannot be divided among 8 processes; let "):
        split_batch(1, 4, 8)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_row_of_an_epoch_falls_to_one_process_and_all_take_as_many_batches(size):
    # 11 batches, which neither 2 nor 3 processes share evenly.
    order = EpochOrder(21, seed=1, batch=4)
    shares = [DistributedBatchSampler(order, 2, rank=rank, size=size, filler=21) for rank in range(size)]
    for share in shares:
        share.set_epoch(3)
    taken = [list(share) for share in shares]
    assert {len(batches) for batches in taken} == {len(shares[0])}
    rows = [row for batches in taken for batch in batches for row in batch]
    assert sorted(row for row in rows if row != 21) == list(range(21))
    # Of one process after the other: the order of all.
    order.set_epoch(3)
    together = [row for step in zip(*taken, strict=True) for batch in step for row in batch if row != 21]
    assert together == list(order)


OF_BOTH = {"lora_dropout": 0.0, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


@pytest.fixture(scope="module")
def both(tiny_llama, tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess]:
    """Trained by one process, and by two; 41 rows leave one process without a row at the end of an epoch."""
    corpus = make_corpus(tiny_llama, tmp_path_factory.mktemp("corpus"), rows=41)
    places = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    done = [
        run(
            train_command(tiny_llama, corpus, place, place / "work", **OF_BOTH),
            *("--processes", number, "--log", str(place / "log.txt")),
        )
        for number, place in zip("12", places, strict=True)
    ]
    assert [each.returncode for each in done] == [0, 0], done[1].stderr + (places[1] / "log.txt").read_text()
    return *places, done[1]


def test_two_processes_learn_what_one_learns(both):
    """The same rows in every step: losses agree to the rounding of sums in another order."""
    one, two = (read_json(place / "training.json") for place in both[:2])
    assert two["processes"] == 2
    assert two["steps"] == one["steps"]
    for name in ("sequences", "real_tokens", "supervised_tokens"):
        assert one[name] == two[name], name
    assert [sorted(point) for point in one["curve"]] == [sorted(point) for point in two["curve"]]
    for first, second in zip(one["curve"], two["curve"], strict=True):
        assert first["step"] == second["step"]
        if "loss" in first:
            assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
        if "eval_loss" in first:
            assert second["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-4)
    weights = [load_file(place / "adapter" / "adapter_model.safetensors") for place in both[:2]]
    for name, tensor in weights[0].items():
        assert (weights[1][name] - tensor).abs().max() < 1e-3 * tensor.abs().max() + 1e-6, name


def test_one_of_them_speaks(both):
    said = both[2].stderr.splitlines()
    assert sum("step 2 of" in line for line in said) == 1, said
    assert all(line.startswith("train_adapter: ") for line in said), said
    log = (both[1] / "log.txt").read_text()
    assert log.count("\ntime: started") == 1


def test_their_key_is_that_of_one_process(both):
    one, two = ([path.name for path in (place / "work").iterdir()] for place in both[:2])
    assert one == two


@pytest.mark.slow
def test_weights_and_checkpointing_with_two_processes(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus", rows=21)
    losses = []
    for number in "12":
        out = tmp_path / number
        more = {"lora_dropout": 0.0, "metric_for_best_model": "loss", "num_train_epochs": 1}
        more |= {"class_balance": "weight", "gradient_checkpointing": True}
        done = run(train_command(tiny_llama, corpus, out, out / "work", **more), "--processes", number)
        assert done.returncode == 0, done.stderr
        curve = read_json(out / "training.json")["curve"]
        losses.append([point.get("loss", point.get("eval_loss")) for point in curve])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_the_processes_found_comes_together_in_the_order_of_the_rows(monkeypatch, size):
    rows = list(range(7))
    monkeypatch.setattr(distributed, "get_world_size", lambda: size)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        shares.append(distributed.shard(rows))
    monkeypatch.setattr(distributed, "all_gather", lambda _: shares)
    assert distributed.gather_shards(shares[0]) == rows


def test_an_error_of_several_processes_is_one_line_and_exit_code_1(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    command = train_command(tiny_llama, corpus, tmp_path, tmp_path / "work", per_device_train_batch_size=3)
    done = run(command, "--processes", "2", "--log", str(tmp_path / "log.txt"))
    assert done.returncode == 1
    assert set(done.stderr.splitlines()) == {
        "error: finetune: 3 rows a step cannot be divided among 2 processes; let per_device_train_batch_size times"
        " gradient_accumulation_steps be a multiple, or take fewer GPUs"
    }


def test_several_processes_die_with_their_parent(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus", rows=400)
    command = train_command(tiny_llama, corpus, tmp_path, tmp_path / "work", num_train_epochs=50)
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *command, "--processes", "2"],
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob("work/*/checkpoint-*/complete.json")):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if subprocess.run(["pgrep", "-f", str(tmp_path / "corpus")], capture_output=True).returncode == 1:
            return
        time.sleep(0.1)
    subprocess.run(["pkill", "-9", "-f", str(tmp_path / "corpus")])
    pytest.fail("processes outlived their parent")


# Time limits


@pytest.mark.slow
@pytest.mark.parametrize(("number", "starts"), [("1", 2), ("2", 1)])
def test_a_training_stops_before_its_limit_and_goes_on_to_the_same_bytes(tiny_llama, both, tmp_path, number, starts):
    corpus, calm, limited = make_corpus(tiny_llama, tmp_path / "corpus", rows=41), both[int(number) - 1], tmp_path
    steps = read_json(calm / "training.json")["steps"]
    command = train_command(tiny_llama, corpus, limited, limited / "work", **OF_BOTH)
    for step in range(1, starts + 1):  # a limit too short for anything: a step each time
        done = run(command, "--limit", "0.01", "--processes", number)
        assert done.returncode == 75, done.stderr
        assert f"the time is up at step {step} of {steps}, and saved; start again to go on" in done.stderr
        assert "error:" not in done.stderr
        assert not (limited / "adapter").exists()
    done = run(command, "--limit", "60", "--processes", number)
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {starts} of {steps}" in done.stderr
    assert adapter_hash(limited) == adapter_hash(calm)
    facts = [read_json(place / "training.json") for place in (calm, limited)]
    for name in ("steps", "best_step", "best_value", "real_tokens", "computed_tokens", "supervised_tokens"):
        assert facts[0][name] == facts[1][name], name


def test_slurm_says_when_the_job_ends(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    command = train_command(tiny_llama, corpus, tmp_path, tmp_path / "work")
    done = run(command, "--limit", "600", SLURM_JOB_END_TIME=str(int(time.time()) + 61))
    assert done.returncode == 75, done.stderr


@pytest.mark.parametrize("number", ["1", "2"])
def test_sigterm_saves_progress_first(tiny_llama, tmp_path, number):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus", rows=400)
    command = train_command(tiny_llama, corpus, tmp_path, tmp_path / "work", num_train_epochs=50, eval_steps=5)
    process = subprocess.Popen([*command, "--processes", number], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("work/*/checkpoint-5/complete.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == (75 if number == "1" else 128 + signal.SIGTERM), said
    (line,) = [line for line in said.splitlines() if "the time is up" in line]
    step = int(line.split(" at step ")[1].split()[0])
    assert list(tmp_path.glob(f"work/*/checkpoint-{step}/complete.json"))


def test_a_second_training_waits_and_trains_nothing_twice(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    work = tmp_path / "work"
    with open(tmp_path / "first.txt", "w") as stderr:
        first = subprocess.Popen(train_command(tiny_llama, corpus, tmp_path / "a", work), stderr=stderr)
    while not list(work.glob("*/holder.json")):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)
    waiting = subprocess.Popen(
        train_command(tiny_llama, corpus, tmp_path / "b", work), stderr=subprocess.PIPE, text=True
    )
    assert waiting.stderr is not None
    said = []
    while "waiting for it" not in "".join(said):  # ends with an empty line if it did not wait
        said.append(waiting.stderr.readline())
        assert said[-1], said
    first.send_signal(signal.SIGCONT)
    rest = waiting.communicate()[1]
    second = subprocess.CompletedProcess([], waiting.returncode, "", "".join(said) + rest)
    assert first.wait() == 0, (tmp_path / "first.txt").read_text()
    assert second.returncode == 0, second.stderr
    assert re.search(r"another process holds \S+; waiting for it: process ", second.stderr)
    assert "already trained" in second.stderr
    assert hash_file(tmp_path / "a/adapter.manifest.json") == hash_file(tmp_path / "b/adapter.manifest.json")
