"""What happens around the training steps: time and tokens, lines for a person, when to stop, whole checkpoints."""

import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from lib.core import distributed
from lib.core.checksums import find_fault, is_finished, remove, write_checksums
from lib.core.cli import report_progress
from lib.core.files import read_json, write_json
from lib.hardware.memory import trim_memory

_RESERVE = 60.0  # seconds for what comes around the steps: start-up of the job, last checkpoint
_TRIMMED = 10  # steps between two times that freed memory is given back
_SPENT = "spent.json"  # in a checkpoint


def list_validations(state: Any) -> list[dict[str, Any]]:
    """Return what the log says about each validation: step, eval_loss and maybe a metric, in order."""
    return [entry for entry in state.log_history if "eval_loss" in entry]


def has_stopped_early(state: Any, patience: int | None) -> bool:
    """Return whether as many validations as `patience` brought nothing better, before the last step."""
    since_best = sum(entry["step"] > (state.best_global_step or 0) for entry in list_validations(state))
    return patience is not None and since_best >= patience and state.global_step < state.max_steps


@dataclass
class TrainingStats:
    """What the training steps took, in this process; kept over a resume.

    seconds: wall time, with making the batches, without validations and checkpoints. real_tokens: of all rows;
    computed_tokens: that went through the linear layers (padding counts, what rows share does not); targets:
    supervised.
    """

    seconds: float = 0.0
    real_tokens: int = 0
    computed_tokens: int = 0
    targets: int = 0

    def in_all(self) -> "TrainingStats":
        """Return the tokens of all processes; the time is theirs together."""
        return TrainingStats(
            self.seconds, *map(int, distributed.all_reduce_sum([self.real_tokens, self.computed_tokens, self.targets]))
        )


class Progress(TrainerCallback):
    """Time spent in training steps, lines for the person who waits, whole checkpoints."""

    def __init__(self, work: Path, spent: TrainingStats) -> None:
        self.work, self.spent = work, spent
        self.started: float | None = None  # None: the clock has stopped

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.best_global_step:  # by the state it may lie where another machine had it
            state.best_model_checkpoint = str(name_checkpoint(self.work, state.best_global_step))
        spent = name_checkpoint(self.work, state.global_step) / _SPENT
        if spent.is_file():
            saved = read_json(spent)
            vars(self.spent).update(saved if distributed.get_rank() == 0 else {"seconds": saved["seconds"]})
            report_progress(f"train_adapter: resumed at step {state.global_step} of {state.max_steps}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.started is None:
            self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # A GPU is still computing this step. The clock runs on, so the next step counts the rest of its time, and the
        # next batch is made meanwhile. Only before the clock stops must we wait for it.
        stops = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        if stops and torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent.seconds += now - (self.started or now)
        self.started = None if stops else now

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given["logs"]
        said = [f"training loss {logs['loss']:.4f}"] if "loss" in logs else []
        said += [
            f"validation {name.removeprefix('eval_')} {value:.4f}"
            for name, value in logs.items()
            if name.startswith("eval_")
        ]
        if said:
            left = self.spent.seconds / max(state.global_step, 1) * (state.max_steps - state.global_step)
            report_progress(
                f"train_adapter: step {state.global_step} of {state.max_steps}, {', '.join(said)},"
                f" about {left / 60:.0f} min left"
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        spent = self.spent.in_all()  # and all have saved their random numbers
        if distributed.get_rank() == 0:
            folder = name_checkpoint(self.work, state.global_step)
            write_json(folder / _SPENT, asdict(spent))
            write_checksums(folder)
            drop_old_checkpoints(self.work, state.best_global_step)
        distributed.wait_for_all()


class TrimMemory(TrainerCallback):
    """Gives memory back that freed activations have left in pieces: batches differ in length, and none fits again."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % _TRIMMED == 0:
            trim_memory()


class CheckpointMirror(TrainerCallback):
    """Calls `copy`, in the first process, when a checkpoint is whole."""

    def __init__(self, copy: Callable[[], None]) -> None:
        self.copy = copy

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if distributed.get_rank() == 0:
            self.copy()


class EarlyStopping(TrainerCallback):
    """Ends the training when `patience` validations brought nothing better (None: never).

    It remembers nothing and asks the state, which checkpoints hold: a resumed run stops at the same step.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= state.max_steps or has_stopped_early(state, self.patience)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Each validation is followed by a checkpoint; before that it is not known which is the best.
        if has_stopped_early(state, self.patience):
            control.should_training_stop = True


class TimeLimit(TrainerCallback):
    """Stops with progress saved when what is left until `deadline` may be too short for another step, or on SIGTERM.

    deadline: time of the monotonic clock; None: none. Every start makes at least one step. Schedulers send SIGTERM a
    while before they kill: at their own limit, when somebody cancels, or when they need the machine.
    """

    def __init__(self, deadline: float | None) -> None:
        self.deadline, self.terminated, self.stopped = deadline, False, False
        self.last = self.longest = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        signal.signal(signal.SIGTERM, self._terminate)
        self.last = time.monotonic()

    def _terminate(self, *_: Any) -> None:
        self.terminated = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()  # a step, maybe with the validation and the saving before it
        self.longest, self.last = max(self.longest, now - self.last), now
        late = self.deadline is not None and now + 2 * self.longest + _RESERVE > self.deadline
        if _is_true_anywhere(self.terminated or late, args.device) and state.global_step < state.max_steps:
            control.should_log = control.should_save = control.should_training_stop = self.stopped = True


def _is_true_anywhere(value: bool, device: torch.device) -> bool:
    """Return whether a value is true in one of the processes.

    Every step asks, so one number is sent: `distributed.all_gather` pickles values and needs two collectives.
    """
    if distributed.get_world_size() == 1:
        return value
    found = torch.tensor([int(value)], device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def name_checkpoint(work: Path, step: int) -> Path:
    """Return the folder of a training checkpoint, by transformers' name."""
    return work / f"checkpoint-{step}"


def drop_old_checkpoints(work: Path, best: int | None) -> None:
    """Remove all training checkpoints but the last two and the best one.

    By their steps: the Trainer goes by their times, and before the last one is whole.
    """
    steps = sorted(_checkpoints(work))
    for step in steps[:-2]:
        if step != best:
            remove(name_checkpoint(work, step))


def find_last_checkpoint(work: Path) -> str | None:
    """Return the newest training checkpoint to go on from, or None.

    It must hold the bytes that it was left with, and so must the one that was the best by then, which is loaded when
    the training ends. What is cut or changed is removed, and said unless a kill explains it.
    """
    whole = {step for step, folder in _checkpoints(work).items() if _is_whole(folder)}
    for step in sorted(whole, reverse=True):
        best = read_json(name_checkpoint(work, step) / "trainer_state.json")["best_global_step"]
        if best in (None, *whole):
            return str(name_checkpoint(work, step))
        report_progress(
            f"train_adapter: {name_checkpoint(work, step)} needs checkpoint-{best}, which is gone; going back further"
        )
        remove(name_checkpoint(work, step))
    return None


def _is_whole(folder: Path) -> bool:
    fault = find_fault(folder)
    if fault and is_finished(folder):
        report_progress(
            f"train_adapter: {folder} is not used: {fault}; going back to the checkpoint before, or to the start"
        )
    if fault:
        remove(folder)
    return fault is None


def _checkpoints(work: Path) -> dict[int, Path]:
    """Return the training checkpoints by step, whole or not."""
    found = {folder.name.removeprefix("checkpoint-"): folder for folder in work.glob("checkpoint-*")}
    return {int(step): folder for step, folder in found.items() if step.isdecimal()}
