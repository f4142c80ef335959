"""The training's side: whatever becomes of who tells the trackers, a step never waits and never fails."""

import json
import sys
import time
from types import SimpleNamespace

import pytest

from lib.core import distributed
from lib.training import progress_feed
from lib.training.progress_feed import ProgressFeed, tell_trackers

KEEP = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
SPEAK = "import sys; print('warning: MLflow is down', flush=True); sys.stdin.read()"


def state(step: int, *history: dict) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, log_history=list(history))


def feed_to(code: str, *words: str) -> ProgressFeed:
    return ProgressFeed(progress_feed._start([sys.executable, "-c", code, *words]))


def test_a_resumed_training_sends_what_was_logged_before(tmp_path):
    feed = feed_to(KEEP, str(tmp_path / "got"))
    feed.on_train_begin(None, state(2, {"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}), None)
    feed.on_log(None, state(3), None, logs={"loss": 0.5})
    feed.finish()
    feed.close()
    got = [json.loads(line) for line in (tmp_path / "got").read_text().splitlines()]
    assert got == [{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}, {"loss": 0.5, "step": 3}, {"end": True}]


def test_what_the_process_says_is_said_by_the_training(monkeypatch):
    said = []
    monkeypatch.setattr(progress_feed, "report_progress", said.append)
    feed_to(SPEAK).close()
    assert said == ["warning: MLflow is down"]


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "import time; time.sleep(600)"], ids=["dead", "stuck"])
def test_a_process_that_is_dead_or_stuck_costs_the_steps_nothing(code, monkeypatch):
    said = []
    monkeypatch.setattr(progress_feed, "report_progress", said.append)
    monkeypatch.setattr(progress_feed, "_STOPPED", 0.2)
    feed = feed_to(code)
    feed.on_train_begin(None, state(0), None)
    if "exit" in code:
        feed.process.wait()
    started = time.monotonic()
    for step in range(3000):  # more than a pipe takes
        feed.on_log(None, state(step), None, logs={"loss": 1.0, "learning_rate": 0.1})
    feed.close()
    assert time.monotonic() - started < 5
    assert feed.process.returncode is not None
    assert len(said) == ("sleep" in code)


def test_a_training_without_trackers_and_all_processes_but_the_first_start_nothing(monkeypatch):
    monkeypatch.setattr(progress_feed, "_start", lambda command: pytest.fail("started"))
    with tell_trackers([]) as feed:
        feed.on_log(None, state(1), None, logs={"loss": 1.0})
        feed.finish()
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    with tell_trackers(["mlflow"]) as feed:
        assert feed.process is None


def test_a_process_that_cannot_be_started_is_told_and_no_more(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(progress_feed, "report_progress", said.append)
    assert progress_feed._start([str(tmp_path / "missing")]) is None
    assert said[0].startswith("warning: nothing tells the trackers: [Errno 2]")
