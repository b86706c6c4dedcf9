"""The operator's options for vLLM, `LATENTEVOLVE_VLLM_ARGS`, as far as we have to know them before vLLM does.

Owns how the options of a `--config` file come before all others. Knows none of the options.
"""

import json
import shlex
from typing import Any

import yaml


def split(vllm_args: str) -> tuple[list[str], list[str]]:
    """Return the options of the file that `--config` names, and all others: vLLM puts the file's first.

    That is before our own defaults too, so what the file says gives way to both.

    Raises:
        ValueError: quotes are left open, or the file cannot be read; vLLM does not start then either.
    """
    args = shlex.split(vllm_args)
    if "--config" not in args:  # `--config=file` is not read by vLLM
        return [], args
    index = args.index("--config")
    file, others = args[index + 1 : index + 2], args[:index] + args[index + 2 :]
    if not file or "--config" in others:
        raise ValueError("LATENTEVOLVE_VLLM_ARGS: `--config` takes one YAML file, once")
    try:
        with open(file[0], encoding="utf-8") as stream:
            options = yaml.safe_load(stream)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"LATENTEVOLVE_VLLM_ARGS: `--config {file[0]}` cannot be read: {error}; name a YAML file"
        ) from error
    if not isinstance(options, dict):
        raise ValueError(f"LATENTEVOLVE_VLLM_ARGS: `--config {file[0]}` has no options: write `name: value`")
    return [word for name, value in options.items() for word in _words(f"{name}", value)], others


def _words(name: str, value: Any) -> list[str]:
    """Return an option of a file as it is written on a command line."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)] if value else []
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
