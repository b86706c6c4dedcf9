"""How tokens are drawn."""

from collections import Counter

import pytest
import torch

from model.decoder import Draft
from model.engine import Decoding

WEIGHTS = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3])


def drawn(decoding: Decoding, count: int = 4000) -> Counter[int]:
    draft = Draft(decoding, count, frozenset(), None, lambda tokens: "", lambda: False)
    for _ in range(count):
        draft.take(WEIGHTS.log())
    return Counter(draft.tokens)


def test_tokens_are_drawn_in_proportion() -> None:
    found = drawn(Decoding(max_tokens=4000, temperature=1.0, seed=3))
    for token, weight in enumerate(WEIGHTS.tolist()):
        assert found[token] / 4000 == pytest.approx(weight, abs=0.03)
    assert found[0] == found[2] == 0


def test_top_p_leaves_out_the_unlikely_ones() -> None:
    found = drawn(Decoding(max_tokens=4000, temperature=1.0, top_p=0.6, seed=3))
    assert set(found) == {3, 4}
    assert found[3] / 4000 == pytest.approx(0.5 / 0.8, abs=0.03)


def test_logits_that_are_not_finite_are_an_error() -> None:
    draft = Draft(
        Decoding(max_tokens=1, temperature=1.0, seed=3),
        1,
        frozenset(),
        None,
        lambda tokens: "",
        lambda: False,
    )
    with pytest.raises(RuntimeError, match="not finite"):
        draft.take(torch.full((5,), torch.nan))
