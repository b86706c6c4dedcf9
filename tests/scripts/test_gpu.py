"""The script for a machine with a GPU, rehearsed on the CPU with a tiny model of random weights."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.test_readme import script

ROOT = Path(__file__).parents[2]
SIZES = {
    "--length": 4, "--prompts": 3, "--tokens": 4, "--train": 24, "--held-out": 12, "--night-steps": 3,
    "--step-tokens": 16, "--repetitions": 1, "--population": 2,
    "--day": 16, "--asked": 4, "--stream-tokens": 12,
}  # fmt: skip
SMALL = ["--device", "cpu", *(str(part) for size in SIZES.items() for part in size)]

# What a machine with CUDA torch and transformers does not have.
ABSENT = """
import sys
absent = set(
    "accelerate anthropic argon2 celery compressed_tensors fastapi gguf jsonschema kombu limits openai"
    " opentelemetry prometheus_client psutil pydantic pydantic_settings qdrant_client qdrant_edge redis"
    " referencing sklearn sse_starlette starlette uvicorn vllm".split()
)

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.path.insert(0, sys.argv.pop(1))
import gpu
sys.exit(gpu.main())
"""


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """The folder of the tiny model without its weights."""
    folder = tmp_path_factory.mktemp("shape")
    for file in Path(tiny_model).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The network is tiny: threads that wait for each other would cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rehearse(*arguments: str) -> tuple[int, str]:
    """Run the script in this process and return its exit status and its table."""
    lines: list[str] = []
    return script("gpu").main(arguments, lines.append), "\n".join(lines)


@pytest.mark.slow
def test_every_part_runs_with_torch_and_transformers_alone(shape: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABSENT, str(ROOT / "scripts"), str(shape), *SMALL],
        cwd="/",
        env={"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line[:36].strip(): line for line in done.stdout.splitlines()}
    assert "RANDOM WEIGHTS" in rows["model"]
    assert "cosine 1.00000 at least" in rows["gradient, float32"]
    assert "3 of 3 answers equal" in rows["decoding, float32"]
    assert "% for the right choice before" in rows["night, held out"]
    assert "samples agree on 0 of 16 questions: too few to learn" in rows["stream, day"]
    assert {"step, latentseek", "step, gradient", "step, evolution"} <= set(rows)


def test_the_stream_learns_what_samples_agree_on_and_asks_new_questions(
    shape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = script("gpu")
    # Answers of random weights agree in nothing, so any of them is taken for what most say.
    monkeypatch.setattr(gpu, "_example", lambda engine, prompt, answers: answers[0])
    lines: list[str] = []
    assert gpu.main([str(shape), *SMALL, "--parts", "stream"], lines.append) == 0
    rows = {line[:36].strip(): line for line in lines}
    assert "samples agree on 16 of 16 questions, rightly on 0" in rows["stream, day"]
    assert "3 steps on 16 answers" in rows["stream, training"]
    for way, tokens in (("plain", 12), ("majority of 8", 96), ("one pass after the night", 12)):
        assert f"0 of 4 right, {tokens} tokens for each" in rows[f"stream, {way}"]


def test_part_that_cannot_run_says_so_and_the_others_go_on(shape: Path) -> None:
    status, table = rehearse(str(shape), *SMALL, "--parts", "night,decoding", "--train", "1000")
    assert status == 1
    assert "NOT RUN: ValueError: topics.jsonl has 240 headlines, not 1012" in table
    assert "3 of 3 answers equal" in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_rehearse(shape: Path) -> None:
    status, table = rehearse(str(shape))
    assert status == 1
    assert "NOT RUN: RuntimeError: torch finds no CUDA device; `--device cpu` rehearses without one" in table
