r"""Whether an answer keeps the rules its request implies: JSON, a JSON schema, a regex, `\boxed{}`.

Owns those checks. Schemas and patterns come from clients, so nothing here fetches a reference or runs a
pattern without a time limit.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import regex  # type: ignore[import-untyped]

from model.engine import Generation
from model.final_answer import boxed
from server.steering.call import RenderedPrompt

logger = logging.getLogger(__name__)

PATTERN_TIMEOUT_S = 0.05

Check = Callable[[str], bool]


class Format:
    """Share of the request's rules that an answer keeps; does not apply to a request without rules."""

    name = "format"
    tokens_per_answer = 0

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one share per answer, or None for all of them."""
        checks = list(_checks(prompt.format_rules))
        if not checks:
            return [None] * len(answers)
        return [sum(check(answer.text) for check in checks) / len(checks) for answer in answers]


def in_form(prompt: RenderedPrompt, answer: Generation) -> bool:
    """Return whether an answer keeps every rule of its request; others are no example to learn from."""
    return all(check(answer.text) for check in _checks(prompt.format_rules))


def _checks(rules: Mapping[str, Any]) -> Iterator[Check]:
    if (schema := rules.get("json_schema")) is not None:
        validator = _validator(schema)
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


def _validator(schema: Any) -> Any | None:
    """Return a validator of the schema, None when it is one that we cannot check."""
    if isinstance(schema, str):
        schema = _parsed(schema)
    if not isinstance(schema, dict | bool):
        return None
    if "patternProperties" in json.dumps(schema):
        return None  # jsonschema matches those names with `re`, which cannot be given a time limit
    # Not above: refiners are timed on machines with torch and little else (`scripts/gpu.py`).
    import jsonschema  # type: ignore[import-untyped]
    from referencing import Registry

    base = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        base.check_schema(schema)
    except jsonschema.SchemaError:
        return None
    bounded = jsonschema.validators.extend(base, {"pattern": _check_pattern})
    # An empty registry: jsonschema's default one would fetch remote references.
    return bounded(schema, registry=Registry())


def _is_valid(validator: Any, text: str) -> bool:
    try:
        return bool(validator.is_valid(json.loads(text)))
    except (ValueError, RecursionError):
        return False
    except Exception as error:
        # Unresolvable references are only found while validating, and their error type is private.
        logger.warning("JSON schema cannot be checked: %s", type(error).__name__)
        return False


def _check_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if isinstance(instance, str) and not _matches(pattern, instance, whole=False):
        yield ValidationError("does not match the pattern")


def _compiles(pattern: str) -> bool:
    try:
        regex.compile(pattern)
    except regex.error:
        return False  # another dialect: it cannot be checked here
    return True


def _matches(pattern: str, text: str, *, whole: bool) -> bool:
    match = regex.fullmatch if whole else regex.search
    try:
        return match(pattern, text, timeout=PATTERN_TIMEOUT_S) is not None
    except (regex.error, TimeoutError):
        return False
