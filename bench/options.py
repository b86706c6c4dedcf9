"""Options that benchmarks of questions share.

Owns their names and help, and how settings are given as name=value.
"""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.engine import EngineKind
from cli.demonstration.stream import EXAMPLES
from cli.failure import USAGE, CommandError
from cli.options import SECRETS
from config.settings import Settings

TOPICS = EXAMPLES / "topics.jsonl"
"""The questions of a benchmark that is given no others."""

Data = Annotated[Path, typer.Option("--data", help="JSONL file with `question` and `answer`.")]
EngineName = Annotated[EngineKind, typer.Option("--engine", help="What decodes.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Answer budget.")]
Instruction = Annotated[str, typer.Option("--instruction", help="Follows each question.")]
System = Annotated[str, typer.Option("--system", help="System prompt.")]
SettingPairs = Annotated[
    list[str] | None,
    typer.Option("--setting", help="Server setting as name=value, such as recall_k=8; repeatable."),
]


def numbers(text: str, option: str, *, least: int = 0, rising: bool = False) -> list[int]:
    """Return the different numbers of a comma-separated option.

    Raises:
        CommandError: exit code 2, they are none.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least or len(set(found)) < len(found) or (rising and found != sorted(found)):
        kind = "rising" if rising else "different"
        raise CommandError(
            f"{option} {text}: not {kind} numbers from {least} on",
            f"such as {option} {least},{least + 1}",
            USAGE,
        )
    return found


def names(text: str, option: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the different names of a comma-separated option.

    Raises:
        CommandError: exit code 2, one is not among the known ones, or is there twice.
    """
    found = tuple(part.strip() for part in text.split(","))
    if unknown := [name for name in found if name not in known]:
        raise CommandError(f"{option}: {unknown[0]!r} is none", f"known are {', '.join(known)}", USAGE)
    if len(set(found)) < len(found):
        raise CommandError(f"{option} {text}: one is named twice", "name each once", USAGE)
    return found


def digest(path: Path) -> str:
    """Return sixteen hex digits that name the content of a file.

    Raises:
        CommandError: exit code 2, it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error}", "name a JSONL file", USAGE) from error


NO_RESULT = SECRETS | {
    "host",
    "port",
    "data_dir",
    "cache_dir",
    "gateway_url",
    "open_without_key",
    "dashboard",
    "otlp_endpoint",
    "log_level",
    "model",
    "served_model_name",
    "night_cron",
    "explore_concurrency",
    "night_episodes",
    "trace_limit",
}
"""Settings that no result depends on, and those that may hold a password."""


def of_results(settings: Settings, leave_out: Collection[str] = ()) -> dict[str, str]:
    """Return the settings that results depend on, those left at their defaults too: defaults change."""
    left_out = NO_RESULT.union(leave_out)
    return {name: str(getattr(settings, name)) for name in Settings.model_fields if name not in left_out}


def settings_at_default() -> dict[str, str]:
    """Return every setting that has a default at that, as `of_results` writes it."""
    return {name: str(field.get_default()) for name, field in Settings.model_fields.items()}


def pairs(settings: Sequence[str] | None) -> dict[str, str]:
    """Return the values of name=value by name.

    Raises:
        CommandError: exit code 2, naming the pair that is none of a setting.
    """
    found = {}
    for pair in settings or ():
        name, equals, value = pair.partition("=")
        if not equals or name not in Settings.model_fields:
            raise CommandError(f"--setting {pair}: not name=value of a setting", "see .env.example", USAGE)
        found[name] = value
    return found
