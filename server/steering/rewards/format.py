r"""Whether an answer keeps the rules its request implies: JSON, a JSON schema, a regex, `\boxed{}`.

Owns those checks. Schemas and patterns come from clients: none is fetched from elsewhere, none may take
longer than a limit on one answer, and none is checked on the event loop.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]

from model.engine import Generation
from model.final_answer import boxed
from server.steering.prompt import RenderedPrompt

logger = logging.getLogger(__name__)

FORMAT = "format"
"""Name of the signal."""
CHECK_TIMEOUT_S = 0.05
"""Longest check of one answer by one rule; an answer that takes longer does not keep it."""
RULE_CHARS = 32_768
"""Longer schemas and patterns are not checked: they would take too long to read."""

_THREADS = ThreadPoolExecutor(2, thread_name_prefix="format")
"""Their own: those of the event loop may all wait for a state that hangs, and answers wait for these."""

Check = Callable[[str], bool]

_until: ContextVar[float] = ContextVar("_until")
"""Processor time of this thread at which a check has taken too long; not the clock's, for others may have the
processor meanwhile."""


class _TooLongError(Exception):
    """A schema takes too long on an answer."""


class Format:
    """Share of the request's rules that an answer keeps; does not apply to a request without rules."""

    name = FORMAT

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one share per answer, or None for all of them."""
        return await _checked(prompt, answers)


async def are_in_form(prompt: RenderedPrompt, answers: Sequence[Generation]) -> list[bool]:
    """Return which answers keep every rule of their request; others are no example to learn from."""
    return [share in (None, 1.0) for share in await _checked(prompt, answers)]


def in_form(prompt: RenderedPrompt, answer: Generation) -> bool:
    """Return whether one answer does; blocks."""
    return _shares(prompt.format_rules, [answer])[0] in (None, 1.0)


async def _checked(prompt: RenderedPrompt, answers: Sequence[Generation]) -> list[float | None]:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, _shares, prompt.format_rules, answers)


def _shares(rules: Mapping[str, Any], answers: Sequence[Generation]) -> list[float | None]:
    """Return the share of the rules that each answer keeps, None for all where there are no rules."""
    checks = list(_checks(rules))
    if not checks:
        return [None] * len(answers)
    return [sum(check(answer.text) for check in checks) / len(checks) for answer in answers]


def _checks(rules: Mapping[str, Any]) -> Iterator[Check]:
    if (schema := rules.get("json_schema")) is not None:
        validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
        if validator is not None:
            yield lambda text: _is_valid(validator, text)
    if rules.get("json_object"):
        yield lambda text: isinstance(_parsed(text), dict)
    if (pattern := rules.get("regex")) is not None and _compiles(pattern):
        yield lambda text: _matches(pattern, text.strip(), whole=True)
    if rules.get("boxed"):
        yield lambda text: bool(boxed(text))


def _parsed(text: str) -> Any:
    """Return the value, or None when the text is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@lru_cache(maxsize=32)
def _validator(text: str) -> Any | None:
    """Return a validator of the schema, None when it is one that we cannot check."""
    schema = _parsed(text) if len(text) <= RULE_CHARS else None
    if not isinstance(schema, dict | bool):
        return None
    # Not above: searches are timed on machines with torch and little else (`scripts/gpu.py`).
    import jsonschema  # type: ignore[import-untyped]
    from referencing import Registry

    base = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    if isinstance(schema, dict):
        # A part that names its own dialect would be given to jsonschema's own class, which has no limits.
        schema = {name: value for name, value in schema.items() if name != "$schema"}
        text = json.dumps(schema)
    if '"$schema"' in text or "patternProperties" in text:
        return None  # jsonschema matches the names of the latter with `re`, which knows no limit either
    try:
        base.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError, OverflowError):
        return None
    limited = {name: _limited(check) for name, check in base.VALIDATORS.items()}
    bounded = jsonschema.validators.extend(base, limited | {"pattern": _check_pattern})
    # An empty registry: jsonschema's default one would fetch remote references.
    return bounded(schema, registry=Registry())


def _limited(check: Callable[..., Any]) -> Callable[..., Any]:
    """Return a keyword's check that ends a validation which has taken too long.

    References can make the number of keywords to check exponential in a schema's length, and threads cannot
    be stopped from outside.
    """

    def limited(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if time.thread_time() > _until.get():
            raise _TooLongError
        return check(validator, value, instance, schema)

    return limited


def _is_valid(validator: Any, text: str) -> bool:
    _until.set(time.thread_time() + CHECK_TIMEOUT_S)
    try:
        return bool(validator.is_valid(json.loads(text)))
    except (ValueError, RecursionError, _TooLongError):
        return False
    except Exception as error:
        # Unresolvable references are only found while validating, and their error type is private.
        logger.warning("JSON schema cannot be checked: %s", type(error).__name__)
        return False


def _check_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if time.thread_time() > _until.get():
        raise _TooLongError
    if isinstance(instance, str) and not _matches(pattern, instance, whole=False):
        yield ValidationError("does not match the pattern")


def _compiles(pattern: str) -> bool:
    if len(pattern) > RULE_CHARS:
        return False
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError):
        return False  # another dialect: it cannot be checked here
    return True


def _matches(pattern: str, text: str, *, whole: bool) -> bool:
    match = regex.fullmatch if whole else regex.search
    try:
        return match(pattern, text, timeout=CHECK_TIMEOUT_S) is not None
    except (regex.error, RecursionError, TimeoutError):
        return False
