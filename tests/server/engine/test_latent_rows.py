"""Rows of a latent in the place of a prompt's matrix of embeddings."""

import pytest
import torch

from server.engine.latent_rows import LatentRows

LENGTH, ROWS = 9, torch.arange(1.0, 7.0).reshape(3, 2)


@pytest.mark.parametrize("position", [0, 2, 6])
def test_every_slice_is_that_of_the_matrix(position: int) -> None:
    matrix = torch.zeros(LENGTH, 2)
    matrix[position : position + 3] = ROWS
    prompt = LatentRows(ROWS, position, LENGTH)
    assert len(prompt) == len(matrix)
    assert prompt.shape == matrix.shape
    for start in range(LENGTH):
        for end in range(start, LENGTH + 3):
            assert torch.equal(prompt[start:end], matrix[start:end])
    assert torch.equal(prompt[:], matrix)


def test_tokens_beside_the_latent_take_no_memory() -> None:
    far = LatentRows(ROWS, 5, 1_000_000)[10:]
    assert far.shape == (999_990, 2)
    assert far.untyped_storage().nbytes() == 2 * ROWS.itemsize
