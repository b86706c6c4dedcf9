"""Where the model of a night runs; no GPU is needed to decide it."""

import logging
from pathlib import Path

import pytest
import torch

from worker.engine import PREFIX_BYTES, ROOM, has_room


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model-1.safetensors").write_bytes(bytes(600))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(400))
    (tmp_path / "tokenizer.json").write_bytes(bytes(10_000))
    return tmp_path


@pytest.mark.parametrize(
    ("there", "free", "expected"), [(False, 0, False), (True, -1, False), (True, 0, True)]
)
def test_gpu_is_used_when_the_model_has_room_there(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    there: bool,
    free: int,
    expected: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (ROOM * 1000 + PREFIX_BYTES + free, 10**9))
    with caplog.at_level(logging.WARNING):
        assert has_room(model) is expected
    assert ("--gpu-memory-utilization" in caplog.text) == (there and not expected)
