"""Choices by probabilities, less what a model leans to."""

import numpy as np
import pytest

from model.calibration import calibrated, chosen_right, label_of, leaning
from model.engine import Label, SteeredPrompt
from tests.scripted_engine import ScriptedEngine
from tests.worker.choosing import ChoosingEngine

UNIFORM = np.full(4, 0.25)
CHOICES = ("fruit", "tool", "town", "bird")


def test_what_a_model_says_too_often_is_made_up_for() -> None:
    logits = np.log([[0.7, 0.1, 0.1, 0.1]] * 9 + [[0.4, 0.4, 0.1, 0.1]])
    found = calibrated(logits, leaning(logits, 1.0, UNIFORM))
    assert found.mean(axis=0) == pytest.approx(UNIFORM, abs=0.05)
    assert found[-1].argmax() == 1
    assert found.sum(axis=1) == pytest.approx(1)


def test_what_is_known_tells_how_frequent_each_choice_is() -> None:
    logits = np.log([[0.7, 0.1, 0.1, 0.1]] * 9 + [[0.4, 0.4, 0.1, 0.1]])
    unknown = calibrated(logits, leaning(logits, 1.0, UNIFORM))
    skewed = calibrated(logits, leaning(logits, 1.0, np.array([0.85, 0.05, 0.05, 0.05])))
    assert skewed[0].argmax() == 0
    assert skewed[0, 0] > unknown[0, 0]


def test_without_strength_nothing_changes() -> None:
    logits = np.log(np.random.default_rng(0).dirichlet([1] * 4, 20))
    assert calibrated(logits, leaning(logits, 0.0, UNIFORM)) == pytest.approx(np.exp(logits))


def test_a_label_holds_the_likeliest_choices_first_and_leaves_out_the_hopeless() -> None:
    engine = ScriptedEngine()
    label = label_of(engine, CHOICES, np.array([0.2, 0.7, 0.08, 0.02]))
    assert label is not None
    assert label.answers == tuple(engine.answer_tokens(choice) for choice in ("tool", "fruit", "town"))
    assert label.probabilities == pytest.approx((0.7 / 0.98, 0.2 / 0.98, 0.08 / 0.98))
    assert label.choices == CHOICES


def test_what_is_too_near_chance_is_no_label() -> None:
    engine = ScriptedEngine()
    assert label_of(engine, CHOICES, np.array([0.39, 0.21, 0.2, 0.2])) is None
    assert label_of(engine, CHOICES, np.array([0.41, 0.2, 0.2, 0.19])) is not None
    assert label_of(engine, CHOICES[:2], np.array([0.6, 0.4])) is None
    assert label_of(engine, CHOICES[:1], np.array([1.0])) is not None


async def test_a_prompt_is_right_where_the_likeliest_choice_of_its_label_is_chosen() -> None:
    engine = ChoosingEngine()
    prompts = [engine.render([{"role": "user", "content": f"sums {n}"}]) for n in range(3)]
    engine.believes = {
        prompts[0]: (0.7, 0.1, 0.1, 0.1),
        prompts[1]: (0.1, 0.1, 0.7, 0.1),
        prompts[2]: (0.1, 0.7, 0.1, 0.1),
    }
    tool = Label.of(engine.answer_tokens("tool"), CHOICES)
    town = label_of(engine, CHOICES, np.array([0.3, 0.1, 0.5, 0.1]))
    assert town is not None
    found = await chosen_right(engine, [SteeredPrompt(prompt) for prompt in prompts], [tool, town, tool])
    assert found.tolist() == [0, 1, 1]
