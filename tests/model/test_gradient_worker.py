"""The gradient worker computes what the engine computes, and outlives its process."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from model.engine import EngineDeadError, Label, PlacementError, SteeredPrompt
from model.gradient_worker import GradientWorker
from model.space import LatentRejectedError
from model.transformers_engine import TransformersEngine
from tests.model.conftest import LENGTH

pytestmark = pytest.mark.slow
IN_TURN = pytest.mark.asyncio(loop_scope="module")

LABEL = Label.of((510, 3575, 282, 4649))

PARENT = """
import asyncio, sys
from model.gradient_worker import GradientWorker

async def main():
    gradient_worker = GradientWorker(sys.argv[1], length=4, placement="user_turn_end")
    await gradient_worker.start()
    print(gradient_worker.pid, flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture(scope="module")
def engine(tiny_model: str) -> TransformersEngine:
    """What the gradient worker has to agree with."""
    return TransformersEngine(tiny_model, length=LENGTH, placement="user_turn_end", max_model_len=1024)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gradient_worker(tiny_model: str) -> AsyncIterator[GradientWorker]:
    """One gradient worker for the tests that leave it running, and for the one after them that closes it."""
    gradient_worker = GradientWorker(tiny_model, length=LENGTH, placement="user_turn_end", threads=2)
    yield gradient_worker
    await gradient_worker.close()


def prompts(engine: TransformersEngine) -> list[SteeredPrompt]:
    tokens = engine.render([{"role": "user", "content": "What is the capital of France?"}])
    return [
        SteeredPrompt(tokens, engine.neutral_latent()),
        SteeredPrompt(tokens, engine.neutral_latent() * 1.5),
    ]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


@IN_TURN
async def test_the_gradient_worker_equals_the_engine(
    engine: TransformersEngine, gradient_worker: GradientWorker
) -> None:
    starting = asyncio.create_task(gradient_worker.start())
    ticks = 0
    while not starting.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 10  # the loop stayed free
    assert gradient_worker.space == engine.space
    pid = gradient_worker.pid
    assert pid is not None
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, os.getpid())

    batch = prompts(engine)
    ours = await engine.latent_gradient(batch, [LABEL] * 2, [1.0, 2.0])
    theirs = await gradient_worker.latent_gradient(batch, [LABEL] * 2, [1.0, 2.0])
    assert torch.allclose(ours.log_likelihood, theirs.log_likelihood, atol=1e-4)
    assert torch.allclose(ours.gradient, theirs.gradient, atol=1e-4)
    assert torch.allclose(
        ours.log_likelihood, await gradient_worker.log_likelihood(batch, [LABEL] * 2), atol=1e-4
    )
    said = tuple(engine.answer_tokens(text) for text in ("Paris", "Rome"))
    soft = [Label(said, (0.3, 0.7), ("Paris", "Rome"))] * 2
    of_choices = await gradient_worker.latent_gradient(batch, soft, [1.0, 2.0])
    expected = await engine.latent_gradient(batch, soft, [1.0, 2.0])
    assert torch.allclose(of_choices.log_likelihood, expected.log_likelihood, atol=1e-4)
    assert torch.allclose(of_choices.gradient, expected.gradient, atol=1e-4)
    tokens = [prompt.token_ids for prompt in batch]
    assert torch.allclose(
        await engine.raw_states(tokens), await gradient_worker.raw_states(tokens), atol=1e-3
    )

    with pytest.raises(PlacementError):
        await gradient_worker.log_likelihood([SteeredPrompt((1, 2, 3), engine.neutral_latent())], [LABEL])
    with pytest.raises(LatentRejectedError):
        await gradient_worker.log_likelihood([SteeredPrompt(tokens[0], torch.zeros(4, 3))], [LABEL])
    with pytest.raises(ValueError, match="needs a latent"):
        await gradient_worker.latent_gradient([SteeredPrompt(tokens[0])], [LABEL], [1.0])
    assert gradient_worker.pid == pid  # refusals do not end it


@IN_TURN
async def test_a_killed_gradient_worker_says_so_and_comes_back(
    engine: TransformersEngine, gradient_worker: GradientWorker
) -> None:
    await gradient_worker.start()
    first = gradient_worker.pid
    assert first is not None
    batch = prompts(engine)
    os.kill(first, signal.SIGSTOP)  # so that the call is surely under way
    call = asyncio.create_task(gradient_worker.log_likelihood(batch, [LABEL] * 2))
    await asyncio.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineDeadError, match=r"died \(exit code -9\); it is started again"):
        await call
    expected = await engine.log_likelihood(batch, [LABEL] * 2)
    assert torch.allclose(await gradient_worker.log_likelihood(batch, [LABEL] * 2), expected, atol=1e-4)

    second = gradient_worker.pid
    assert second is not None
    assert second != first
    os.kill(second, signal.SIGKILL)  # between two calls
    await until(lambda: os.waitid(os.P_PID, second, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    assert torch.allclose(await gradient_worker.log_likelihood(batch, [LABEL] * 2), expected, atol=1e-4)
    assert gradient_worker.pid not in (first, second)


@IN_TURN
async def test_close_does_not_wait_for_a_hanging_call_and_leaves_no_process(
    engine: TransformersEngine, gradient_worker: GradientWorker
) -> None:
    await gradient_worker.start()
    pid = gradient_worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    call = asyncio.create_task(gradient_worker.log_likelihood(prompts(engine), [LABEL] * 2))
    await asyncio.sleep(0.2)
    await gradient_worker.close()
    with pytest.raises(EngineDeadError, match="closed"):
        await call
    assert not is_running(pid)
    with pytest.raises(EngineDeadError, match="closed"):
        await gradient_worker.raw_states([prompt.token_ids for prompt in prompts(engine)])


async def test_a_gradient_worker_that_hangs_is_ended_after_its_time(
    engine: TransformersEngine, tiny_model: str
) -> None:
    gradient_worker = GradientWorker(tiny_model, length=LENGTH, placement="user_turn_end", timeout_s=0.5)
    await gradient_worker.start()
    pid = gradient_worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineDeadError, match="did not answer"):
        await gradient_worker.log_likelihood(prompts(engine), [LABEL] * 2)
    assert not is_running(pid)
    await gradient_worker.close()


async def test_close_does_not_wait_for_a_start(tiny_model: str) -> None:
    gradient_worker = GradientWorker(tiny_model, length=LENGTH, placement="user_turn_end")
    starting = asyncio.create_task(gradient_worker.start())
    await until(lambda: gradient_worker.pid is not None)
    pid = gradient_worker.pid
    assert pid is not None
    await gradient_worker.close()
    with pytest.raises(EngineDeadError):
        await starting
    assert not is_running(pid)


async def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    gradient_worker = GradientWorker(str(tmp_path), length=LENGTH, placement="user_turn_end")
    with pytest.raises(EngineDeadError, match="cannot load"):
        await gradient_worker.start()
    with pytest.raises(EngineDeadError, match="tried again later"):
        await gradient_worker.start()
    await gradient_worker.close()


def test_the_gradient_worker_ends_when_its_parent_is_killed(tiny_model: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(script), tiny_model],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
