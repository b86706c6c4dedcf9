"""The memory that `bench serve` starts with."""

from bench.serve.remembered import episodes_of
from tests.scripted_engine import ScriptedEngine


async def test_episodes_have_the_real_keys_and_latents_that_a_store_takes() -> None:
    engine = ScriptedEngine()
    asked = ["Which is it?", "What is that?"]
    episodes = await episodes_of(engine, asked)
    prompts = [engine.render([{"role": "user", "content": question}]) for question in asked]
    keys = (await engine.keys(prompts)).numpy()
    for episode, key, prompt in zip(episodes, keys, prompts, strict=True):
        episode.check(engine.space.length, engine.space.hidden_size)
        assert (episode.key == key).all()
        assert episode.prompt_token_ids == prompt
        assert episode.space == engine.space.id
        assert episode.latent_earned


async def test_latents_differ_and_stay_near_the_neutral_one() -> None:
    engine = ScriptedEngine()
    first, second = await episodes_of(engine, ["one", "two"])
    neutral = engine.neutral_latent()
    assert (first.latent != second.latent).any()
    assert float(abs(first.latent - neutral.numpy()).max()) <= 0.06 * float(neutral.norm())
