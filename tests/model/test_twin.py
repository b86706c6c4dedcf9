"""The twin computes what the engine computes, and outlives its process."""

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
from model.space import LatentRejectedError
from model.transformers_engine import TransformersEngine
from model.twin import TwinProcess
from tests.model.conftest import LENGTH

pytestmark = pytest.mark.slow
IN_TURN = pytest.mark.asyncio(loop_scope="module")

LABEL = Label.of((510, 3575, 282, 4649))

PARENT = """
import asyncio, sys
from model.twin import TwinProcess

async def main():
    twin = TwinProcess(sys.argv[1], length=4, placement="user_turn_end")
    await twin.start()
    print(twin.pid, flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture(scope="module")
def engine(tiny_model: str) -> TransformersEngine:
    """What the twin has to agree with."""
    return TransformersEngine(tiny_model, length=LENGTH, placement="user_turn_end", max_model_len=1024)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def twin(tiny_model: str) -> AsyncIterator[TwinProcess]:
    """One twin for the tests that leave it running, and for the one after them that closes it."""
    twin = TwinProcess(tiny_model, length=LENGTH, placement="user_turn_end", threads=2)
    yield twin
    await twin.close()


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
async def test_the_twin_equals_the_engine(engine: TransformersEngine, twin: TwinProcess) -> None:
    starting = asyncio.create_task(twin.start())
    ticks = 0
    while not starting.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 10  # the loop stayed free
    assert twin.space == engine.space
    pid = twin.pid
    assert pid is not None
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, os.getpid())

    batch = prompts(engine)
    ours = await engine.latent_gradient(batch, [LABEL] * 2, [1.0, 2.0])
    theirs = await twin.latent_gradient(batch, [LABEL] * 2, [1.0, 2.0])
    assert torch.allclose(ours.log_likelihood, theirs.log_likelihood, atol=1e-4)
    assert torch.allclose(ours.gradient, theirs.gradient, atol=1e-4)
    assert torch.allclose(ours.log_likelihood, await twin.log_likelihood(batch, [LABEL] * 2), atol=1e-4)
    said = tuple(engine.answer_tokens(text) for text in ("Paris", "Rome"))
    soft = [Label(said, (0.3, 0.7), ("Paris", "Rome"))] * 2
    of_choices = await twin.latent_gradient(batch, soft, [1.0, 2.0])
    expected = await engine.latent_gradient(batch, soft, [1.0, 2.0])
    assert torch.allclose(of_choices.log_likelihood, expected.log_likelihood, atol=1e-4)
    assert torch.allclose(of_choices.gradient, expected.gradient, atol=1e-4)
    tokens = [prompt.token_ids for prompt in batch]
    assert torch.allclose(await engine.raw_states(tokens), await twin.raw_states(tokens), atol=1e-3)

    with pytest.raises(PlacementError):
        await twin.log_likelihood([SteeredPrompt((1, 2, 3), engine.neutral_latent())], [LABEL])
    with pytest.raises(LatentRejectedError):
        await twin.log_likelihood([SteeredPrompt(tokens[0], torch.zeros(4, 3))], [LABEL])
    with pytest.raises(ValueError, match="needs a latent"):
        await twin.latent_gradient([SteeredPrompt(tokens[0])], [LABEL], [1.0])
    assert twin.pid == pid  # refusals do not end it


@IN_TURN
async def test_a_killed_twin_says_so_and_comes_back(engine: TransformersEngine, twin: TwinProcess) -> None:
    await twin.start()
    first = twin.pid
    assert first is not None
    batch = prompts(engine)
    os.kill(first, signal.SIGSTOP)  # so that the call is surely under way
    call = asyncio.create_task(twin.log_likelihood(batch, [LABEL] * 2))
    await asyncio.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineDeadError, match=r"died \(exit code -9\); it is started again"):
        await call
    expected = await engine.log_likelihood(batch, [LABEL] * 2)
    assert torch.allclose(await twin.log_likelihood(batch, [LABEL] * 2), expected, atol=1e-4)

    second = twin.pid
    assert second is not None
    assert second != first
    os.kill(second, signal.SIGKILL)  # between two calls
    await until(lambda: os.waitid(os.P_PID, second, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    assert torch.allclose(await twin.log_likelihood(batch, [LABEL] * 2), expected, atol=1e-4)
    assert twin.pid not in (first, second)


@IN_TURN
async def test_close_does_not_wait_for_a_hanging_call_and_leaves_no_process(
    engine: TransformersEngine, twin: TwinProcess
) -> None:
    await twin.start()
    pid = twin.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    call = asyncio.create_task(twin.log_likelihood(prompts(engine), [LABEL] * 2))
    await asyncio.sleep(0.2)
    await twin.close()
    with pytest.raises(EngineDeadError, match="closed"):
        await call
    assert not is_running(pid)
    with pytest.raises(EngineDeadError, match="closed"):
        await twin.raw_states([prompt.token_ids for prompt in prompts(engine)])


async def test_a_twin_that_hangs_is_ended_after_its_time(engine: TransformersEngine, tiny_model: str) -> None:
    twin = TwinProcess(tiny_model, length=LENGTH, placement="user_turn_end", timeout_s=0.5)
    await twin.start()
    pid = twin.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineDeadError, match="did not answer"):
        await twin.log_likelihood(prompts(engine), [LABEL] * 2)
    assert not is_running(pid)
    await twin.close()


async def test_close_does_not_wait_for_a_start(tiny_model: str) -> None:
    twin = TwinProcess(tiny_model, length=LENGTH, placement="user_turn_end")
    starting = asyncio.create_task(twin.start())
    await until(lambda: twin.pid is not None)
    pid = twin.pid
    assert pid is not None
    await twin.close()
    with pytest.raises(EngineDeadError):
        await starting
    assert not is_running(pid)


async def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    twin = TwinProcess(str(tmp_path), length=LENGTH, placement="user_turn_end")
    with pytest.raises(EngineDeadError, match="cannot load"):
        await twin.start()
    with pytest.raises(EngineDeadError, match="tried again later"):
        await twin.start()
    await twin.close()


def test_the_twin_ends_when_its_parent_is_killed(tiny_model: str, tmp_path: Path) -> None:
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
