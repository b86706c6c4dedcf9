"""`python -m bench.serve.bare`: becomes vLLM's own server, with the options and environment of our engine.

Owns what is taken away: the options that only steering needs. Everything else is what
`server/engine/launch.py` gives the engine of a gateway with the same settings.
"""

import os
import sys
from collections.abc import Sequence

from config.settings import Settings
from model.pull import resolve_model
from server.engine.launch import (
    computes_in_bfloat16,
    engine_arguments,
    prepare_environment,
    runs_on_cpu,
    text_config,
)

VLLM = "vllm.entrypoints.openai.api_server"
"""What `vllm serve` runs; the command itself does not find its version in the CPU package."""

STEERING = {"--enable-prompt-embeds": 0, "--worker-extension-cls": 1}
"""Options that bare vLLM does without, and how many values each has."""


def main() -> None:
    """Replace this process, so that nothing of ours is left in it."""
    settings = Settings()
    path = resolve_model(settings.model, settings.cache_dir, print)
    prepare_environment(settings, path)
    options = engine_arguments(
        settings,
        path,
        text_config(path),
        on_cpu=runs_on_cpu(),
        has_bfloat16=computes_in_bfloat16(),
    )
    command = [sys.executable, "-m", VLLM, *without_steering(options)]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(settings.port)])


def without_steering(options: Sequence[str]) -> list[str]:
    """Return options without those that only steering needs."""
    kept, skip = [], 0
    for option in options:
        if skip:
            skip -= 1
        elif option in STEERING:
            skip = STEERING[option]
        else:
            kept.append(option)
    return kept


if __name__ == "__main__":
    main()
