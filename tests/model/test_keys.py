"""Keys are centred directions."""

import pytest
import torch

from model.keys import KEY_PROBES, centre, centred


def test_probes_are_many_and_distinct() -> None:
    assert len(set(KEY_PROBES)) == len(KEY_PROBES) >= 32


def test_a_common_part_of_all_states_leaves_no_trace_in_keys() -> None:
    states = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    common = 50 * torch.ones(16)
    shifted = centred(states[:4] + common, centre(states + common))
    assert torch.allclose(shifted, centred(states[:4], centre(states)), atol=1e-4)
    assert torch.allclose(shifted.norm(dim=-1), torch.ones(4), atol=1e-5)


def test_a_centre_needs_a_batch() -> None:
    with pytest.raises(ValueError, match="expected"):
        centre(torch.zeros(16))
