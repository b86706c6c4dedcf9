"""What a benchmark's engine is said to have computed."""

from bench.engine import Counted
from model.engine import Decoding, Label, SteeredPrompt
from tests.scripted_engine import ScriptedEngine


async def test_what_rows_share_counts_once_and_a_backward_pass_twice_more() -> None:
    engine = ScriptedEngine(length=4)
    counted = Counted(engine)
    prompt = engine.render([{"role": "user", "content": "how many?"}])
    plain, steered = SteeredPrompt(prompt), SteeredPrompt(prompt, engine.neutral_latent())

    await counted.keys([prompt])
    assert counted.forward == len(prompt)

    counted.forward = 0
    answers = await counted.generate([plain, plain, steered], Decoding(max_tokens=8))
    written = sum(len(answer.token_ids) for answer in answers)
    assert counted.forward == 2 * len(prompt) + 4 + written

    counted.forward = 0
    label = Label.of(engine.answer_tokens("three"))
    await counted.log_likelihood([steered, steered], [label, label])
    assert counted.forward == len(prompt) + 4 + 2 * len(label.answers[0])

    counted.forward = 0
    await counted.latent_gradient([steered], [label], [1.0])
    at = engine.position(prompt)
    assert counted.forward == at + 3 * (len(prompt) - at + 4 + len(label.answers[0]))

    counted.forward = 0
    await counted.choice_log_probabilities([plain], ("yes", "no"), held=True)
    assert counted.forward == len(prompt) + len(engine.answer_tokens("yes")) + len(engine.answer_tokens("no"))


async def test_it_leaves_the_engine_open() -> None:
    engine = ScriptedEngine()
    await Counted(engine).close()
    assert (await engine.keys([engine.render([{"role": "user", "content": "still there?"}])])).shape[0] == 1
