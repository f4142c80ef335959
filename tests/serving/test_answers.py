"""When a model says that it is unsure."""

import math

import pytest

from lib.serving.answers import choose_answer

LOG_PROBS = [math.log(0.7), math.log(0.2), math.log(0.1)]
TEMPLATE = {"labels": ["joy", "fear", "anger"]}


@pytest.mark.parametrize(
    ("decided", "said"),
    [
        ({}, "joy"),
        ({"threshold": 0.5}, "joy"),
        ({"threshold": 0.8}, "unsure"),
        ({"threshold": None}, "unsure"),  # none reached the precision: nothing is answered
        ({"threshold": 0.6, "temperature": 2.0}, "unsure"),
    ],
)
def test_it_answers_where_the_corrected_probability_reaches_the_threshold(decided, said):
    answer = choose_answer(LOG_PROBS, TEMPLATE | decided)
    assert answer["label"] == said
    assert answer.get("best") == ("joy" if said == "unsure" else None)
    assert answer["probability"] == max(answer["probabilities"].values())
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
