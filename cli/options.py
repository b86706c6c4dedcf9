"""Options that several commands share, and how they become settings.

Owns names and help of the shared options. An option that is not given leaves the
`LATENTEVOLVE_*` variable, or the default, in force.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cli.failure import USAGE, CommandError
from config.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, everything else on stderr.")]
Url = Annotated[str | None, typer.Option("--url", help="Base URL of the gateway.", metavar="URL")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Key of the gateway.", metavar="KEY")]
Host = Annotated[str | None, typer.Option("--host", help="Address the gateway listens on.")]
Port = Annotated[int | None, typer.Option("--port", help="Port the gateway listens on.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Hugging Face folder or id, or the default model.")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder of what is remembered.")]
CacheDir = Annotated[Path | None, typer.Option("--cache-dir", help="Folder of converted models.")]

SECRETS = frozenset({"api_key", "memory_api_key", "memory_url", "broker_url", "state_url", "verifier_url"})
"""Settings that may hold a password, which no message repeats."""


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def load_settings(**overrides: Any) -> Settings:
    """Return the settings with the given options over them.

    Raises:
        CommandError: exit code 2, naming the setting that is wrong.
    """
    try:
        return Settings(**given(**overrides))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        got = "" if name in SECRETS else f" (got {first.get('input')!r})"
        raise CommandError(
            f"setting {name}: {first['msg']}{got}",
            f"correct the option, or LATENTEVOLVE_{name.upper()} in the environment or .env",
            USAGE,
        ) from error


def environment(overrides: dict[str, Any]) -> dict[str, str]:
    """Return settings as the environment variables that hand them to a child process."""
    return {f"LATENTEVOLVE_{name.upper()}": str(value) for name, value in given(**overrides).items()}


def check_folder(path: Path | None, option: str) -> None:
    """Say before a long run that its result could not be written.

    Raises:
        CommandError: exit code 2, the folder of `path` is not there.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise CommandError(f"no folder {path.absolute().parent}", f"make it, or choose {option}", USAGE)
