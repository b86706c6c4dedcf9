"""Which rows of a batch are kept as states of which request."""

from collections import OrderedDict
from uuid import uuid4

import torch

from server.engine.extension import KEY_REQUEST, MAX_STATES, keep_rows


def key_id() -> str:
    return f"{KEY_REQUEST}{uuid4().hex}"


def test_each_key_request_gets_its_own_row() -> None:
    states: OrderedDict[str, torch.Tensor] = OrderedDict()
    first, second = key_id(), key_id()
    rows = torch.arange(8.0).reshape(4, 2)
    keep_rows(states, [f"{first}-0a1b2c3d", "chatcmpl-1", "latent.2", f"{second}-4e5f6071"], rows)
    assert list(states) == [first, second]
    assert states[first].tolist() == [0, 1]
    assert states[second].tolist() == [6, 7]


def test_last_chunk_wins() -> None:
    states: OrderedDict[str, torch.Tensor] = OrderedDict()
    key = key_id()
    keep_rows(states, [key], torch.zeros(1, 2))
    keep_rows(states, [key], torch.ones(1, 2))
    assert states[key].tolist() == [1, 1]


def test_kept_row_does_not_change_with_the_batch_buffer() -> None:
    states: OrderedDict[str, torch.Tensor] = OrderedDict()
    key, rows = key_id(), torch.ones(1, 2)
    keep_rows(states, [key], rows)
    rows.zero_()
    assert states[key].tolist() == [1, 1]


def test_rows_that_are_not_one_per_request_are_left_out() -> None:
    states: OrderedDict[str, torch.Tensor] = OrderedDict()
    keep_rows(states, [key_id(), "other"], torch.ones(5, 2))
    assert not states


def test_unfetched_states_are_bounded() -> None:
    states: OrderedDict[str, torch.Tensor] = OrderedDict()
    ids = [key_id() for _ in range(MAX_STATES + 3)]
    for key in ids:
        keep_rows(states, [key], torch.ones(1, 2, dtype=torch.bfloat16))
    assert list(states) == ids[3:]
