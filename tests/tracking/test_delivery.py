"""Numbers reach a tracker once, and a tracker that fails costs one line."""

import pytest

from lib.tracking import delivery
from lib.tracking.delivery import Delivery, Point, TrackedRun, describe_fault
from lib.tracking.facts import build_point, flatten_parameters, list_scores

RUN = TrackedRun("0123", "results/lora", {}, {})


class Memory:
    """A tracker that keeps points, and fails as often as it is told to."""

    name = "Memory"

    def __init__(self) -> None:
        self.failures, self.begun, self.points, self.ended = 0, 0, [], None

    def begin(self, run: TrackedRun) -> None:
        self.fail()
        self.begun += 1
        self.points = []

    def log(self, points: list[Point]) -> None:
        self.points += points
        self.fail()  # after it has taken them

    def end(self, is_finished: bool) -> None:
        self.fail()
        self.ended = is_finished

    def fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("http://me:geheim@server/api did not answer")


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(delivery.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def sent(clock):
    tracker, said = Memory(), []
    return Delivery(tracker, RUN, said.append), tracker, said


def test_points_are_sent_once_and_in_order(sent):
    numbers, tracker, said = sent
    for step in (1, 2, 3):
        numbers.add(Point(step, {"train/loss": 1.0}))
        assert numbers.send()
    assert numbers.close(is_finished=True)
    assert [point.step for point in tracker.points] == [1, 2, 3]
    assert (tracker.begun, tracker.ended, said) == (1, True, [])


def test_a_tracker_that_fails_is_told_of_once_and_asked_again_after_a_minute(sent, clock):
    numbers, tracker, said = sent
    tracker.failures = 2
    numbers.add(Point(1, {"train/loss": 1.0}))
    assert not numbers.send()
    clock[0] += 59
    assert not numbers.send()
    assert tracker.failures == 1, "it is left in peace"
    clock[0] += 2
    assert not numbers.send()
    assert said == [
        "warning: Memory does not take the numbers of results/lora: ConnectionError: http://…@server/api did not answer"
    ]
    clock[0] += 61
    numbers.add(Point(2, {"train/loss": 0.5}))
    assert numbers.send()
    assert [point.step for point in tracker.points] == [1, 2]


def test_what_a_tracker_took_before_it_failed_is_begun_anew(sent, clock):
    numbers, tracker, _ = sent
    numbers.add(Point(1, {"train/loss": 1.0}))
    assert numbers.send()
    tracker.failures = 1
    numbers.add(Point(2, {"train/loss": 0.5}))
    assert not numbers.send()
    assert numbers.close(is_finished=False), "the end does not wait for the minute"
    assert [point.step for point in tracker.points] == [1, 2]
    assert (tracker.begun, tracker.ended) == (2, False)


def test_neither_a_login_nor_a_token_is_told(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "aaaa.bbbb.cccc")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    error = ValueError("https://ich:geheim@host/?token=x&sig=y refused Bearer aaaa.bbbb.cccc for geheim\nmore")
    said = describe_fault(error)
    assert said == "ValueError: https://…@host/?token=…&sig=… refused Bearer … for …"
    assert len(describe_fault(ValueError("\x1b[31m" + 400 * "a"))) == 200


# What is told


def test_a_point_has_the_curves_and_not_the_times_of_the_trainer():
    entry = {"loss": 1.5, "grad_norm": 0.1, "learning_rate": 1e-3, "epoch": 0.5, "step": 10}
    assert build_point(entry) == Point(10, {"train/loss": 1.5, "train/learning_rate": 1e-3, "train/grad_norm": 0.1})
    assert build_point({"eval_loss": 1.0, "eval_macro_f1": 0.5, "epoch": 1, "step": 5}) == Point(
        5, {"eval/loss": 1.0, "eval/macro_f1": 0.5}
    )
    assert build_point({"train_runtime": 9.0, "train_loss": 1.0, "step": 20}) is None


def test_settings_have_dotted_names():
    settings = {"seed": 0, "finetune": {"r": 4, "target_modules": ["a", "b"]}}
    assert flatten_parameters(settings) == {"seed": "0", "finetune.r": "4", "finetune.target_modules": "['a', 'b']"}


def test_a_score_has_both_ends_of_its_interval():
    quality = {"n": 20, "accuracy": 0.5, "accuracy_ci95": [0.3, 0.7], "kl": None, "against": {"wins": 3}, "x": True}
    assert list_scores("test", quality) == {
        "test/n": 20,
        "test/accuracy": 0.5,
        "test/accuracy_ci95_low": 0.3,
        "test/accuracy_ci95_high": 0.7,
    }
    assert list_scores("validation/onnx-int4", None) == {}
