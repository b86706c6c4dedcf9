"""What the self-checks ask of an engine. That real vLLM passes them: `test_vllm_engine.py`."""

from argparse import Namespace
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.engine import LatentGradient
from server.engine.self_check import CheckResult, run_checks
from tests.scripted_engine import ScriptedEngine

ARGS = Namespace(chat_template=None, default_chat_template_kwargs=None)


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
    return next(check for check in await run_checks(engine, ARGS) if check.name == "log-probabilities")


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


class WithGradient(ScriptedEngine):
    """As much of an engine as the check of gradients asks for, whose gradients `fault` changes."""

    gradient_worker = object()

    def __init__(self, dtype: torch.dtype, fault: str) -> None:
        super().__init__()
        self.llm = SimpleNamespace(model_config=SimpleNamespace(dtype=dtype))
        self._fault = fault

    async def latent_gradient(self, *arguments: Any, **named: Any) -> LatentGradient:
        found = await super().latent_gradient(*arguments, **named)
        of = {
            "none": lambda true: true,
            "of another length": lambda true: 1.3 * true,
            "rounded": lambda true: true * (1 + 0.2 * torch.randn(true.shape, generator=torch.Generator())),
            "downhill": lambda true: -true,
            "of other columns": lambda true: true.roll(1, dims=2),
            "zero": torch.zeros_like,
            "no number": lambda true: true * torch.nan,
        }
        return LatentGradient(found.log_likelihood, of[self._fault](found.gradient))


@pytest.mark.parametrize(
    ("fault", "exact", "rounded"),
    [
        ("none", True, True),
        ("rounded", True, True),
        ("of another length", False, True),
        ("downhill", False, False),
        ("of other columns", False, False),
        ("zero", False, False),
        ("no number", False, False),
    ],
)
async def test_a_gradient_is_believed_where_likelihoods_rise_as_it_says(
    fault: str, exact: bool, rounded: bool
) -> None:
    for dtype, passes in ((torch.float32, exact), (torch.bfloat16, rounded)):
        checks = await run_checks(WithGradient(dtype, fault), ARGS)  # type: ignore[arg-type]
        (check,) = (check for check in checks if check.name == "gradient")
        assert check.ok == passes, check.detail


@pytest.mark.parametrize(
    ("template", "args", "said"),
    [
        ("{{ messages }}", {}, None),
        (None, {}, "no chat template"),
        ("{{ messages }}", {"chat_template": "other.jinja"}, "--chat-template of"),
        ("{{ messages }}", {"default_chat_template_kwargs": {"enable_thinking": False}}, "-kwargs of"),
    ],
)
async def test_a_chat_template_that_is_not_the_models_own_is_a_failed_check(
    template: str | None, args: dict[str, Any], said: str | None
) -> None:
    engine: Any = BoundedEngine(0)
    engine.tokenizer = SimpleNamespace(chat_template=template)
    first, *_ = await run_checks(engine, Namespace(**{**vars(ARGS), **args}))
    assert (first.name, first.ok) == ("chat-template", said is None)
    assert said is None or said in first.detail
