"""Progress in work/ is believed for its bytes alone: what was cut, changed or exchanged is not used, and that is said."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import train_adapter
from transformers import TrainerCallback

from lib.core.checksums import COMPLETE, find_fault, write_checksums
from lib.core.cli import UserError
from lib.core.files import write_json
from lib.training.callbacks import drop_old_checkpoints, find_last_checkpoint
from support.trainer import Taught, Weights, equal, trainable
from support.training import make_corpus

WEIGHTS = "adapter_model.safetensors"


def change(path: Path) -> None:
    """One bit, and the time that it had."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def exchange(folder: Path) -> None:
    for one, other in ((WEIGHTS, "x"), ("deep/optimizer.pt", WEIGHTS), ("x", "deep/optimizer.pt")):
        (folder / one).rename(folder / other)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda folder: change(folder / WEIGHTS), f"{WEIGHTS} has other bytes than when it was written"),
    "cut": (lambda folder: os.truncate(folder / WEIGHTS, 3), f"{WEIGHTS} has 3 bytes, not 7"),
    "empty, as after a loss of power": (
        lambda folder: os.truncate(folder / "deep/optimizer.pt", 0),
        "deep/optimizer.pt has 0 bytes, not 7",
    ),
    "gone": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "exchanged": (exchange, f"{WEIGHTS} has other bytes"),
    "a file more": (lambda folder: (folder / "model.safetensors").write_text(""), "model.safetensors does not belong"),
    "a hidden file more": (lambda folder: (folder / ".evil").write_text(""), ".evil does not belong"),
    "a link": (
        lambda folder: ((folder / WEIGHTS).rename(folder.parent / "x"), (folder / WEIGHTS).symlink_to("../x")),
        f"{WEIGHTS} is not a regular file",
    ),
    "a link to a folder": (lambda folder: (folder / "more").symlink_to("/"), "more does not belong to it"),
    "a pipe": (lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)), "is not a regular file"),
    "killed before its end": (lambda folder: (folder / COMPLETE).unlink(), "it was cut short"),
    "a cut list": (lambda folder: os.truncate(folder / COMPLETE, 20), f"{COMPLETE} cannot be read"),
    "another list": (lambda folder: write_json(folder / COMPLETE, {"files": {WEIGHTS: 3}}), f"{COMPLETE} cannot"),
    "no list": (lambda folder: write_json(folder / COMPLETE, [1]), f"{COMPLETE} cannot be read"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_folder_of_progress_is_believed_for_its_bytes(tmp_path, damage, said):
    folder = tmp_path / "checkpoint-4"
    (folder / "deep").mkdir(parents=True)
    (folder / WEIGHTS).write_text("weights")
    (folder / "deep/optimizer.pt").write_text("moments")
    write_checksums(folder)
    assert find_fault(folder) is None
    damage(folder)
    assert said in str(find_fault(folder))


def checkpoints(work: Path, *steps: int, best: int) -> None:
    for step in steps:
        write_json(work / f"checkpoint-{step}/trainer_state.json", {"best_global_step": min(best, step)})
        (work / f"checkpoint-{step}" / WEIGHTS).write_text(f"weights of {step}")
        write_checksums(work / f"checkpoint-{step}")


@pytest.mark.parametrize(
    ("best", "damaged", "expected", "left"),
    [
        (4, [], 12, [4, 8, 12]),
        (4, [12], 8, [4, 8]),
        (4, [12, 8], 4, [4]),
        (12, [12], 8, [4, 8]),
        (8, [8], 4, [4]),  # the last one would end with the best weights, and these are gone
        (4, [4], None, []),
        (4, [4, 8, 12], None, []),
    ],
)
def test_a_training_goes_on_from_the_last_checkpoint_that_is_whole(tmp_path, capfd, best, damaged, expected, left):
    checkpoints(tmp_path, 4, 8, 12, best=best)
    for step in damaged:
        change(tmp_path / f"checkpoint-{step}" / WEIGHTS)
    (tmp_path / "checkpoint-of-mine").mkdir()
    assert find_last_checkpoint(tmp_path) == (expected and str(tmp_path / f"checkpoint-{expected}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"checkpoint-{step}" for step in left] + ["checkpoint-of-mine"]
    )
    said = capfd.readouterr().err
    assert all(f"checkpoint-{step} is not used: {WEIGHTS} has other bytes" in said for step in damaged)
    assert bool(said) == bool(damaged)


def test_old_checkpoints_are_dropped_by_their_steps_whatever_the_clock_says(tmp_path):
    checkpoints(tmp_path, 4, 8, 12, 100, best=8)
    for step, time in ((4, 4e9), (8, 1), (12, 2), (100, 0)):
        os.utime(tmp_path / f"checkpoint-{step}", (time, time))
    drop_old_checkpoints(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-12", "checkpoint-8"]


# Real trainings


@pytest.fixture(scope="module")
def corpus(tiny_llama, tmp_path_factory) -> Path:
    return make_corpus(tiny_llama, tmp_path_factory.mktemp("corpus"))


def worse_each_time(first: int = 100) -> Callable[[Any], dict[str, float]]:
    """A metric by which the first checkpoint is the best."""
    left = iter(range(first, 0, -1))
    return lambda model: {"macro_f1": float(next(left))}


def test_a_damaged_checkpoint_costs_its_steps_and_no_bytes(tiny_llama, corpus, tmp_path):
    """And where the best one lay on another machine, it is found where it is now."""
    weights, after = Weights(), Weights()
    taught = Taught(tiny_llama, corpus, tmp_path / "calm", max_steps=12)
    taught.trainer(worse_each_time(), weights).train()
    assert equal(trainable(taught.model), weights.behind[4]), "the best one is loaded at the end"
    shutil.move(tmp_path / "calm", tmp_path / "moved")
    change(tmp_path / "moved/checkpoint-12/optimizer.pt")

    again = Taught(tiny_llama, corpus, tmp_path / "moved", max_steps=12)
    start = find_last_checkpoint(tmp_path / "moved")
    assert start == str(tmp_path / "moved/checkpoint-8")
    again.trainer(worse_each_time(98), after).train(resume_from_checkpoint=start)
    assert min(after.behind) == 9
    assert equal(after.behind[12], weights.behind[12])
    assert equal(trainable(again.model), weights.behind[4])

    whole = Taught(tiny_llama, corpus, tmp_path / "moved", max_steps=12)  # all steps are done
    shutil.move(tmp_path / "moved", tmp_path / "twice")
    whole.work = tmp_path / "twice"
    whole.trainer(worse_each_time()).train(resume_from_checkpoint=find_last_checkpoint(whole.work))
    assert equal(trainable(whole.model), weights.behind[4])


class Spoil(TrainerCallback):
    """Changes the first checkpoint, which is the best, behind the last step."""

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise AssertionError("it must not come to its end")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 8:
            change(Path(args.output_dir) / "checkpoint-4" / WEIGHTS)


def test_a_best_checkpoint_that_changes_while_training_goes_on_is_not_loaded(tiny_llama, corpus, tmp_path):
    taught = Taught(tiny_llama, corpus, tmp_path / "work", max_steps=8)
    with pytest.raises(UserError, match=f"checkpoint-4: the best checkpoint cannot be used: {WEIGHTS} has other bytes"):
        taught.trainer(worse_each_time(), Spoil()).train()


@pytest.mark.parametrize("name", [f"adapter/{WEIGHTS}", "training.json"])
def test_a_changed_result_is_not_published_and_trained_again(tmp_path, capfd, name):
    result = tmp_path / "result"
    assert not train_adapter.has_result(tmp_path)
    for file in (f"adapter/{WEIGHTS}", "training.json"):
        write_json(result / file, {})
    write_checksums(result)
    assert train_adapter.has_result(tmp_path)
    assert capfd.readouterr().err == ""
    change(result / name)
    assert not train_adapter.has_result(tmp_path)
    assert not result.exists()
    said = f"train_adapter: {result} is not used: {name} has other bytes than when it was written; training again\n"
    assert capfd.readouterr().err == said
