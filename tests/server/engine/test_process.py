"""No process of vLLM outlives what started it."""

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from config.settings import Settings
from server.engine.launch import Launched, launch, runs_on_cpu

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

ROOT = Path(__file__).parents[3]


async def test_on_a_cpu_the_process_that_schedules_computes_on_cores_of_its_own(launched: Launched) -> None:
    if not runs_on_cpu():
        pytest.skip("on a GPU vLLM does so by itself")
    (core,) = (child for child in psutil.Process().children() if "EngineCore" in "".join(child.cmdline()))
    assert core.children(recursive=True) == []
    assert any(len(os.sched_getaffinity(thread.id)) == 1 for thread in core.threads())
    assert not {"KMP_AFFINITY", "GOMP_CPU_AFFINITY", "OMP_PLACES"} & os.environ.keys()


async def test_cancelled_start_ends_the_half_started_engine(settings: Settings) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.engine.cancelled_start", settings.model),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    assert b"outcome=CancelledError born=1 left=[]" in printed


async def test_options_that_vllm_does_not_know_are_named(settings: Settings) -> None:
    with pytest.raises(ValueError, match="--no-such-option"):
        async with launch(settings.model_copy(update={"vllm_args": "--no-such-option 1"}), settings.model):
            pass
