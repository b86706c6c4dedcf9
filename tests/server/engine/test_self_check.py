"""What the self-checks ask of an engine. That real vLLM passes them: `test_vllm_engine.py`."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.self_check import CheckResult, run_checks


class BoundedEngine:
    """As much of an engine as the check of log-probabilities asks for; refuses too many as vLLM does."""

    def __init__(self, allowed: int, likeliest: int = 7) -> None:
        self.llm = self
        self.model_config = SimpleNamespace(max_logprobs=allowed)
        self._likeliest = likeliest
        self.asked: list[int | None] = []

    def render(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        return tuple(range(len(messages[0]["content"])))

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
        if params.logprobs is None:
            raise NotImplementedError("another check")
        allowed = self.model_config.max_logprobs
        if allowed >= 0 and params.logprobs > allowed:
            raise ValueError(f"Requested sample logprobs of {params.logprobs}")
        self.asked.append(params.logprobs)
        ranked = {
            token: SimpleNamespace(logprob=-float(token)) for token in range(8, 8 + params.logprobs - 1)
        }
        listed = {7: SimpleNamespace(logprob=-0.1)} | ranked
        answer = SimpleNamespace(token_ids=[self._likeliest] * 8, logprobs=[listed] * 8)
        yield SimpleNamespace(outputs=[answer])


async def log_probabilities(engine: Any) -> CheckResult:
    return next(check for check in await run_checks(engine) if check.name == "log-probabilities")


@pytest.mark.parametrize(("allowed", "asked"), [(-1, 5), (20, 5), (5, 5), (4, 4), (1, 1)])
async def test_no_more_log_probabilities_are_asked_for_than_the_operator_allows(
    allowed: int, asked: int
) -> None:
    engine = BoundedEngine(allowed)
    check = await log_probabilities(engine)
    assert (check.ok, check.value) == (True, 1)
    assert set(engine.asked) == {asked}
    assert not (await log_probabilities(BoundedEngine(allowed, likeliest=8))).ok


async def test_without_lists_of_likeliest_tokens_there_is_nothing_to_check() -> None:
    engine = BoundedEngine(0)
    check = await log_probabilities(engine)
    assert check.ok
    assert "--max-logprobs 0" in check.detail
    assert engine.asked == []
