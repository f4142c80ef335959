"""What happens around the steps, on a GPU and among processes that this machine does not have."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

from lib.core import distributed
from lib.training import callbacks
from lib.training.callbacks import Progress, TimeLimit, TrainingStats


class Gpu:
    """A clock, and a card that works on while its process goes on."""

    def __init__(self) -> None:
        self.now = self.busy_until = 1000.0

    def launch(self, seconds: float) -> None:
        self.busy_until = max(self.now, self.busy_until) + seconds

    def synchronize(self) -> None:
        self.now = max(self.now, self.busy_until)


@pytest.mark.parametrize("validates_every", [1, 2, 5])
def test_the_time_of_a_step_is_the_gpus_and_nothing_elses(tmp_path, monkeypatch, validates_every):
    gpu, spent, control, asked = Gpu(), TrainingStats(), TrainerControl(), []
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: gpu.now)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: (asked.append(gpu.now), gpu.synchronize()))
    progress = Progress(tmp_path, spent)
    for step in range(1, 11):
        gpu.now += 0.5  # the next batch is made while the card works
        gpu.synchronize()  # the Trainer moves the number of its tokens, and waits
        progress.on_step_begin(None, None, control)
        gpu.now += 0.1
        gpu.launch(3.0)
        control.should_evaluate = step % validates_every == 0
        progress.on_step_end(None, None, control)
        if control.should_evaluate:
            gpu.synchronize()
            gpu.now += 100.0
    steps, pauses = 10, 10 // validates_every
    assert len(asked) == pauses, "waiting for each step would leave the card without work meanwhile"
    assert spent.seconds == pytest.approx(3.1 * steps)


@pytest.mark.parametrize(("own", "other"), [(False, True), (True, False), (False, False)])
def test_processes_ask_each_other_for_one_number_in_each_step(monkeypatch, own, other):
    sizes = []

    def all_reduce(tensor, op):
        assert op == torch.distributed.ReduceOp.MAX
        sizes.append(tensor.numel())
        tensor.clamp_(min=int(other))

    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather", lambda value: pytest.fail("pickled in each step"))
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    limit, control = TimeLimit(None), TrainerControl()
    limit.terminated = own
    args = SimpleNamespace(device=torch.device("cpu"))
    limit.on_step_end(args, SimpleNamespace(global_step=1, max_steps=5), control)
    assert sizes == [1]
    assert limit.stopped == control.should_save == control.should_training_stop == (own or other)
