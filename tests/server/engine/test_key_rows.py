"""Which rows of a batch leave as states of which request."""

from uuid import uuid4

import torch

from server.engine.extension import KEY_REQUEST, rows_of_keys


def key_id() -> str:
    return f"{KEY_REQUEST}{uuid4().hex}-0a1b2c3d"


def test_each_key_request_gets_its_own_row() -> None:
    rows = torch.arange(8.0, dtype=torch.bfloat16).reshape(4, 2)
    found = rows_of_keys([key_id(), "chatcmpl-1", "latent.2", key_id()], [False] * 4, rows)
    assert found is not None
    assert [None if row is None else row.tolist() for row in found] == [[0, 1], None, None, [6, 7]]
    assert found[0].dtype == torch.float32


def test_prompt_of_which_more_is_to_come_has_no_state() -> None:
    assert rows_of_keys([key_id(), "other"], [True, False], torch.ones(2, 2)) is None


def test_state_does_not_change_with_the_batch_buffer() -> None:
    rows = torch.ones(1, 2)
    found = rows_of_keys([key_id()], [False], rows)
    rows.zero_()
    assert found is not None
    assert found[0].tolist() == [1, 1]


def test_rows_that_are_not_one_per_request_are_left_out() -> None:
    assert rows_of_keys([key_id(), "other"], [False, False], torch.ones(5, 2)) is None


def test_batch_without_keys_has_no_states() -> None:
    assert rows_of_keys(["chatcmpl-1"], [False], torch.ones(1, 2)) is None
