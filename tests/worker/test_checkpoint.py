"""Checkpoints that cannot be read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worker.checkpoint import reached_step, restore


@pytest.mark.parametrize(
    "counters", ["", "{}", "[]", "null", '{"evaluations": []}', '{"fingerprint": "x", "evaluations": [{}]}']
)
def test_what_is_no_checkpoint_is_not_used(tmp_path: Path, counters: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file({"network.weight": torch.ones(1)}, path, {"counters": counters})
    network = torch.nn.Linear(1, 1)
    before = network.weight.item()
    assert restore(path, network, torch.optim.Adam(network.parameters()), "x") is None
    assert network.weight.item() == before
    assert reached_step(path) == 0
