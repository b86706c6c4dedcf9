"""The scripted engine is deterministic, groups prompts by topic and can be improved."""

import pytest
import torch

from model.engine import (
    Decoding,
    Engine,
    EngineDeadError,
    Label,
    PlacementError,
    PromptTooLongError,
    SteeredPrompt,
    UnsupportedError,
)
from model.space import LatentRejectedError
from tests.scripted_engine import GOOD, POOR, ScriptedEngine

GREEDY = Decoding(max_tokens=64)


def chat(engine: ScriptedEngine, text: str) -> tuple[int, ...]:
    return engine.render([{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}])


def test_it_is_an_engine() -> None:
    assert isinstance(ScriptedEngine(), Engine)


async def test_keys_are_close_within_a_topic_and_far_across() -> None:
    engine = ScriptedEngine()
    texts = ["Weather in Rome?", "weather in Oslo?", "Sports results today", "Cooking rice"]
    keys = await engine.keys([chat(engine, text) for text in texts])
    similarity = keys @ keys.T
    assert torch.allclose(keys.norm(dim=-1), torch.ones(4), atol=1e-5)
    assert similarity[0, 1] > 0.8
    assert similarity[0, 2:].abs().max() < 0.6
    assert similarity[2, 3].abs() < 0.6


async def test_answers_are_poor_without_and_good_with_the_best_latent() -> None:
    engine = ScriptedEngine()
    prompt = chat(engine, "Weather in Rome?")
    plain, neutral, best = await engine.generate(
        [
            SteeredPrompt(prompt),
            SteeredPrompt(prompt, engine.neutral_latent()),
            SteeredPrompt(prompt, engine.best_latent(prompt)),
        ],
        GREEDY,
    )
    assert plain.text.startswith(POOR)
    assert neutral.text.startswith(POOR)
    assert best.text.startswith(GOOD)
    assert best.finish_reason == "stop"
    assert engine.decode(best.token_ids) == best.text


async def test_ascent_along_the_gradient_makes_answers_good() -> None:
    engine = ScriptedEngine()
    prompt = chat(engine, "Weather in Rome?")
    good = Label.of(engine.encode(f"{GOOD}1"))
    latent = engine.neutral_latent()
    before = await engine.log_likelihood([SteeredPrompt(prompt, latent)], [good])
    for _ in range(20):
        step = await engine.latent_gradient([SteeredPrompt(prompt, latent)], [good], [1.0])
        latent = latent + 0.02 * latent.norm() * step.gradient[0] / step.gradient[0].norm()
    after = await engine.log_likelihood([SteeredPrompt(prompt, latent)], [good])
    assert after[0] > before[0] + 1
    (answer,) = await engine.generate([SteeredPrompt(prompt, latent)], GREEDY)
    assert answer.text.startswith(GOOD)


async def test_gradient_agrees_with_finite_differences_and_scales_with_weight() -> None:
    engine = ScriptedEngine()
    prompt = chat(engine, "Weather in Rome?")
    latent = engine.neutral_latent() + 0.01 * torch.randn(engine.space.shape)
    good = Label.of(engine.encode(f"{GOOD}1"))
    step = await engine.latent_gradient([SteeredPrompt(prompt, latent)] * 2, [good] * 2, [1.0, -2.0])
    towards = torch.randn(engine.space.shape)
    up, down = await engine.log_likelihood(
        [SteeredPrompt(prompt, latent + 1e-2 * towards), SteeredPrompt(prompt, latent - 1e-2 * towards)],
        [good] * 2,
    )
    assert torch.isclose((up - down) / 2e-2, (step.gradient[0] * towards).sum(), rtol=0.02)
    assert torch.allclose(step.gradient[1], -2 * step.gradient[0])


async def test_soft_label_is_worth_the_mean_of_its_answers() -> None:
    engine = ScriptedEngine()
    good, poor = engine.encode(f"{GOOD}1"), engine.encode(f"{POOR}1")
    prompts = [SteeredPrompt(chat(engine, "Weather in Rome?"))] * 3
    labels = [Label.of(good), Label.of(poor), Label((good, poor), (0.25, 0.75))]
    of_good, of_poor, of_both = await engine.log_likelihood(prompts, labels)
    torch.testing.assert_close(of_both, 0.25 * of_good + 0.75 * of_poor)


async def test_batches_and_repeats_do_not_change_answers() -> None:
    engine, other = ScriptedEngine(), ScriptedEngine()
    prompts = [SteeredPrompt(chat(engine, text)) for text in ("Weather?", "Sports?", "Cooking?")]
    sampled = [Decoding(max_tokens=64, temperature=1.0, seed=seed) for seed in range(3)]
    together = await engine.generate(prompts, sampled)
    alone = [(await other.generate([p], d))[0] for p, d in zip(prompts, sampled, strict=True)]
    assert together == alone


async def test_choices_stops_and_limits_are_held() -> None:
    engine = ScriptedEngine(answer=lambda prompt, latent, decoding: "one two three")
    prompt = SteeredPrompt(chat(engine, "Count"))
    (stopped,) = await engine.generate([prompt], Decoding(max_tokens=64, stop=("two",)))
    (cut,) = await engine.generate([prompt], Decoding(max_tokens=5, logprobs=True))
    assert (stopped.text, stopped.finish_reason) == ("one ", "stop")
    assert (cut.text, cut.finish_reason, len(cut.logprobs)) == ("one t", "length", 5)
    (chosen,) = await ScriptedEngine().generate([prompt], Decoding(max_tokens=64, choices=("yes", "no")))
    assert chosen.text in ("yes", "no")


async def test_bad_prompts_and_dead_engines_raise() -> None:
    engine = ScriptedEngine(max_model_len=100, differentiable=False)
    prompt = chat(engine, "Hello")
    with pytest.raises(LatentRejectedError):
        await engine.generate([SteeredPrompt(prompt, torch.full(engine.space.shape, float("nan")))], GREEDY)
    with pytest.raises(PlacementError):
        await engine.generate([SteeredPrompt(engine.encode("Hello"), engine.neutral_latent())], GREEDY)
    with pytest.raises(PromptTooLongError):
        await engine.generate([SteeredPrompt(chat(engine, "x" * 100))], GREEDY)
    with pytest.raises(UnsupportedError):
        await engine.log_likelihood([SteeredPrompt(prompt)], [Label.of((1,))])
    engine.alive = False
    with pytest.raises(EngineDeadError):
        await engine.keys([prompt])
    assert {call.method for call in engine.calls} == {"keys"}


def test_revision_separates_spaces() -> None:
    assert ScriptedEngine().space.id == ScriptedEngine().space.id
    assert ScriptedEngine().space.id != ScriptedEngine(revision="2").space.id
