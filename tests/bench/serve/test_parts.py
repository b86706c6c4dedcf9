"""Arms, options and statistics of `bench serve`."""

from types import SimpleNamespace

import pytest

from bench.serve.arms import body, order, parse_arms, questions
from bench.serve.bare import without_steering
from bench.serve.load import Reply, Round
from bench.serve.rounds import Plan
from bench.serve.summary import summary
from cli.failure import CommandError
from config.settings import Settings
from server.engine.launch import engine_arguments


def test_arms_are_read_in_order() -> None:
    assert parse_arms("low, bare,high") == ("low", "bare", "high")


@pytest.mark.parametrize("text", ["none,low", "bare,fast", "bare,low,low", ""])
def test_arms_that_make_no_comparison_are_refused(text: str) -> None:
    with pytest.raises(CommandError):
        parse_arms(text)


def test_every_arm_is_first_once_in_turn() -> None:
    arms = ("bare", "none", "low")
    orders = [order(arms, turn) for turn in range(3)]
    for place in range(3):
        assert sorted(each[place] for each in orders) == sorted(arms)
    assert order(arms, 3) == arms


def test_bare_vllm_is_told_nothing_of_latents_and_memory_stays() -> None:
    assert body("bare") == {"ignore_eos": True}
    assert body("medium") == {"ignore_eos": True, "latent": {"effort": "medium", "store": False}}


def test_prompts_are_never_repeated_and_equally_long() -> None:
    prompts = [text for label in (1, 2, 1234) for text in questions(["Which is it?"], label, 40)]
    assert len(set(prompts)) == len(prompts)
    assert len({len(prompt) for prompt in prompts}) == 1


def test_few_clients_ask_at_least_four_times() -> None:
    plan = Plan(("bare",), (1, 16), rounds=1, requests=2, max_tokens=8, remembered=1)
    assert plan.requests_at(1) == 4
    assert plan.requests_at(16) == 32


def test_bare_vllm_has_our_engine_options_but_those_of_steering() -> None:
    ours = engine_arguments(
        Settings(vllm_args="--seed 3"), "folder", SimpleNamespace(), on_cpu=True, has_bfloat16=False
    )
    bare = without_steering(ours)
    assert set(ours) - set(bare) == {
        "--enable-prompt-embeds",
        "--worker-extension-cls",
        "server.engine.extension.StateCatcher",
    }
    assert bare == [option for option in ours if option in bare]
    assert bare[bare.index("--seed") + 1] == "3"


def rounds(seconds: list[float], first_s: float, mode: str) -> list[Round]:
    replies = (Reply(first_s, first_s + 0.9, 10, mode), Reply(first_s, first_s + 0.9, 10, mode))
    return [Round(each, replies) for each in seconds]


def test_summary_compares_rounds_with_those_of_bare() -> None:
    found = summary(
        {"bare": rounds([1.0, 2.0, 4.0], 0.1, "bare"), "low": rounds([2.0, 4.0, 8.0], 0.2, "recall")}
    )
    assert found["bare"]["tokens_per_s"] == pytest.approx(60 / 7)
    assert "ratio_to_bare" not in found["bare"]
    low = found["low"]
    assert low["requests"] == 6
    assert low["modes"] == {"recall": 6}
    assert low["first_token"]["median_ms"] == pytest.approx(200)
    assert low["between_tokens"]["median_ms"] == pytest.approx(100)
    assert low["ratio_to_bare"]["throughput"]["ratio"] == pytest.approx(0.5)
    assert low["ratio_to_bare"]["throughput"]["high"] == pytest.approx(0.5)
    assert low["ratio_to_bare"]["first_token"]["ratio"] == pytest.approx(2.0)
    assert low["ratio_to_bare"]["between_tokens"]["ratio"] == pytest.approx(1.0)


def test_answers_of_one_token_have_no_time_between_tokens() -> None:
    assert Reply(0.5, 0.5, 1, "plain").gap_s is None
    one = [Round(1.0, (Reply(0.5, 0.5, 1, "plain"),))]
    assert "between_tokens" not in summary({"bare": one, "none": one})["none"]["ratio_to_bare"]
