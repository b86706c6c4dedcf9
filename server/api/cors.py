"""Browsers of other origins.

Owns the one CORS layer, which stands around everything, so that errors and our own routes have its
headers too. It is configured by vLLM's options, and vLLM's own layer stays out of the way
(server/engine/launch.py).
"""

import argparse
import json
from typing import Any

from server.api.requests import REQUEST_ID
from server.api.steered import HEADERS
from server.vllm_args import split


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(message)


def cors_options(vllm_args: str) -> dict[str, Any] | None:
    """Return what Starlette's `CORSMiddleware` takes, None where `vllm_args` allow no origin.

    vLLM reads the same options, but is loaded long after the first requests; those that cannot be read
    allow nothing, and vLLM refuses to start with them.
    """
    parser = _Options(add_help=False, allow_abbrev=False)
    for name, default in (("origins", []), ("methods", ["*"]), ("headers", ["*"])):
        parser.add_argument(f"--allowed-{name}", f"--allowed_{name}", type=json.loads, default=default)
    parser.add_argument("--allow-credentials", "--allow_credentials", action=argparse.BooleanOptionalAction)
    try:
        file, others = split(vllm_args)
        args, _ = parser.parse_known_args([*file, *others])
    except ValueError:
        return None
    if not args.allowed_origins:
        return None
    return {
        "allow_origins": args.allowed_origins,
        "allow_methods": args.allowed_methods,
        "allow_headers": args.allowed_headers,
        "allow_credentials": bool(args.allow_credentials),
        "expose_headers": [*HEADERS, REQUEST_ID],
    }
