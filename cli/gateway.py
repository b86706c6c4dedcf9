"""The gateway as the command line sees it, over HTTP.

Owns requests to the gateway's own routes and the translation of everything that can go wrong
there into a message with a next step. Knows nothing of what the answers mean.
"""

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from cli.failure import USAGE, CommandError, NotThereError
from config.loopback import is_loopback
from config.settings import Settings

PAGE = 100
"""Most entries of a list that are asked for at once."""


class GatewayError(CommandError):
    """The gateway answered with an error status."""

    def __init__(self, status: int, message: str, code: str | None, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code


class MissingError(GatewayError, NotThereError):
    """It has nothing of that name."""


class Gateway:
    """A blocking client of one gateway."""

    def __init__(self, settings: Settings, timeout_s: float = 30.0) -> None:
        self.url = settings.url
        self.api_key = settings.api_key
        self._client = http_client(settings, timeout_s)

    def __enter__(self) -> "Gateway":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **params: str) -> dict[str, Any]:
        """Return the JSON object behind `path`."""
        return self._call("GET", path, params=params)

    def post(
        self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Post `body` and return the JSON object that comes back; `timeout_s` for calls that take longer."""
        named = {} if timeout_s is None else {"timeout": timeout_s}
        return self._call("POST", path, json=body or {}, **named)

    def delete(self, path: str, *, timeout_s: float | None = None, **params: str) -> dict[str, Any]:
        """Delete what is at `path` and return the JSON object that comes back; {} when nothing does."""
        named = {} if timeout_s is None else {"timeout": timeout_s}
        return self._call("DELETE", path, params=params, **named)

    def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Put `body` and return the JSON object that comes back."""
        return self._call("PUT", path, json=body)

    def listed(self, path: str, most: int, **params: str) -> tuple[list[dict[str, Any]], bool]:
        """Return what a list begins with, page by page, and whether it goes on behind that."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(path, limit=str(min(PAGE, most - len(found))), **params)
            found += page["data"]
            if not page["has_more"] or len(found) >= most:
                return found, bool(page["has_more"])
            params["cursor"] = page["next_cursor"]

    def events(self, path: str) -> Iterator[dict[str, Any] | None]:
        """Yield the JSON objects of server-sent events, and None for each sign of life, until they end.

        Raises:
            CommandError: the gateway does not answer, refuses, or breaks off.
        """
        data: list[str] = []
        for line in self._lines(path):
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
            elif line and not name:
                yield None
            elif not line and data:
                yield json.loads("\n".join(data))
                data = []

    def _lines(self, path: str) -> Iterator[str]:
        # Pings come every 15 seconds.
        timeout = httpx.Timeout(60.0, connect=5.0)
        try:
            with self._client.stream("GET", path, timeout=timeout) as response:
                if response.status_code >= 400:
                    response.read()
                    raise refused(response.status_code, error_body(response))
                yield from response.iter_lines()
        except httpx.HTTPError as error:
            raise unreachable(self.url, late=isinstance(error, httpx.ReadTimeout)) from error

    def download(self, path: str) -> Iterator[bytes]:
        """Yield the pieces of what is at `path`, however long that takes."""
        begun = False
        try:
            with self._client.stream("GET", path, timeout=httpx.Timeout(None, connect=5.0)) as response:
                if response.status_code >= 400:
                    response.read()
                    raise refused(response.status_code, error_body(response))
                begun = True
                yield from response.iter_bytes()
        except httpx.HTTPError as error:
            if begun:
                raise CommandError(
                    f"the answer of {self.url} broke off", "see its log in DATA_DIR/logs"
                ) from error
            raise unreachable(self.url, late=isinstance(error, httpx.ReadTimeout)) from error

    def upload(self, path: str, pieces: Iterator[bytes], *, timeout_s: float, **query: str) -> dict[str, Any]:
        """Post `pieces` as one body and return the JSON object that comes back."""
        headers = {"content-type": "application/x-tar"}
        return self._call("POST", path, content=pieces, params=query, headers=headers, timeout=timeout_s)

    def models(self) -> list[str]:
        """Return the ids of the served models; the first is the base model."""
        return [str(entry["id"]) for entry in self.get("/v1/models").get("data", [])]

    def settled_trace(self, trace_id: str | None, timeout_s: float = 20.0) -> dict[str, Any]:
        """Return a trace once it is known whether the answer is remembered; {} when there is none.

        An episode is written after the answer, so that the trace changes for a moment.
        """
        if trace_id is None:
            return {}
        deadline = time.monotonic() + timeout_s
        trace: dict[str, Any] = {}
        pause_s = 0.05
        while True:
            try:
                trace = self.get(f"/v1/latent/traces/{trace_id}")
            except GatewayError as error:
                # A key may ask and not read what is kept; or it has asked enough for now.
                if error.status not in (403, 404, 429):
                    raise
                return trace
            if trace.get("remembered") != "pending" or time.monotonic() > deadline:
                return trace
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise unreachable(self.url, late=isinstance(error, httpx.ReadTimeout)) from error
        if response.status_code >= 400:
            raise refused(response.status_code, error_body(response))
        if response.status_code == 204:
            return {}
        try:
            body = response.json()
        except ValueError as error:
            raise stranger(self.url) from error
        if not isinstance(body, dict):
            raise stranger(self.url)
        return body


def http_client(settings: Settings, timeout_s: float) -> httpx.Client:
    """Return a client of the gateway; a proxy from the environment is not asked for loopback.

    Raises:
        CommandError: what the settings name is no URL.
    """
    try:
        if urlsplit(settings.url).scheme not in ("http", "https"):
            raise ValueError("neither http nor https")
        return httpx.Client(
            base_url=settings.url,
            headers={"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            trust_env=not is_loopback(settings.url),
        )
    except (ValueError, httpx.InvalidURL) as error:
        raise CommandError(
            f"{settings.url!r} is no URL of a gateway", "give it as http://HOST:PORT", USAGE
        ) from error


def error_body(response: httpx.Response) -> dict[str, Any]:
    """Return the `error` object of an OpenAI-shaped body, or {} when there is none."""
    try:
        body = response.json()
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def unreachable(url: str, *, late: bool) -> CommandError:
    """Return the error for a gateway that does not answer; `late`: it took the connection."""
    if late:
        return CommandError(f"the gateway at {url} did not answer in time", "see its log in DATA_DIR/logs")
    return CommandError(
        f"no gateway answers at {url}",
        "start one with `latentevolve serve`, or name another with --url URL",
    )


def refused(status: int, error: dict[str, Any]) -> GatewayError:
    """Return the error for an answer with an error status."""
    code = error.get("code")
    if status == 401:
        return GatewayError(
            status, "the gateway refused the key", str(code), "give it with --api-key or LATENTEVOLVE_API_KEY"
        )
    message = str(error.get("message") or f"the gateway answered with status {status}")
    if status == 403:
        return GatewayError(
            status, message, str(code), "give another API key with --api-key or LATENTEVOLVE_API_KEY"
        )
    kind = MissingError if status == 404 else GatewayError
    return kind(status, message, None if code is None else str(code))


def stranger(url: str) -> CommandError:
    """Return the error for a server that is not a gateway of this project."""
    return CommandError(
        f"what answers at {url} is not a LatentEvolve gateway",
        "check --url, or LATENTEVOLVE_GATEWAY_URL",
    )
