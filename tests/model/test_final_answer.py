"""What an answer says in the end: found in one pass, whatever stands before it."""

import json

from hypothesis import given
from hypothesis import strategies as st

from model.final_answer import LONGEST, boxed, final_answer

PIECES = st.lists(st.sampled_from(["\\boxed{", "{", "}", "7", "a", "\\boxed"]), max_size=14).map("".join)


def slowly(text: str) -> str | None:
    """Return what the last complete box holds, looked for from each box on."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth, begin = 0, start + len("\\boxed")
        for index in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                return text[begin + 1 : index].strip()
        start = text.rfind("\\boxed{", 0, start)
    return None


@given(PIECES)
def test_the_last_complete_box_is_found(text: str) -> None:
    assert boxed(text) == slowly(text)


def test_a_long_answer_is_compared_by_its_end() -> None:
    assert final_answer("1 " + "word " * LONGEST + "so it is 7") == "7"
    assert final_answer("\\boxed{3} " + "word " * LONGEST) is None
    assert final_answer("\\boxed{" * 5_000 + "4}") == "4"


def test_long_json_and_calls_do_not_agree_by_their_ends() -> None:
    for begin in ("one", "other"):
        long = json.dumps({"a": begin, "b": ["word"] * LONGEST, "c": 7})
        assert final_answer(long) is final_answer(f"<tool_call>{long}</tool_call>") is None
