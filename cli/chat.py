"""Chat completions of the gateway, through the official openai client.

Owns one streamed answer with everything that is known about it: text, steering headers, usage and
times. Knows nothing of how it is shown. The client is imported when there is something to ask: that takes
half a second, which commands without a question need not wait for.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cli.failure import CommandError
from cli.gateway import refused, stranger, unreachable
from config.loopback import is_loopback
from config.settings import Settings

if TYPE_CHECKING:
    import openai

BROKE_OFF = "see the gateway's log in DATA_DIR/logs"


@dataclass(frozen=True)
class Answer:
    """One answer and what the gateway said about it."""

    text: str
    headers: dict[str, str]
    """The x-latent-* headers, without that prefix."""
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    first_token_s: float | None
    total_s: float

    @property
    def trace_id(self) -> str | None:
        """Id of the trace, None when the request was not traced."""
        trace = self.headers.get("trace", "none")
        return None if trace == "none" else trace


@dataclass
class Chat:
    """A client of one gateway's chat completions. Threads may share it."""

    settings: Settings
    model: str
    timeout_s: float = 600.0
    _client: "openai.OpenAI" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import openai

        self._client = openai.OpenAI(
            base_url=f"{self.settings.url}/v1",
            api_key=self.settings.api_key or "none",
            max_retries=0,
            http_client=openai.DefaultHttpxClient(
                timeout=openai.Timeout(self.timeout_s, connect=5.0),
                trust_env=not is_loopback(self.settings.url),
            ),
        )

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(
        self,
        question: str,
        *,
        system: str | None = None,
        latent: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        choices: Sequence[str] = (),
        on_text: Callable[[str], None] = lambda _text: None,
    ) -> Answer:
        """Stream one answer, one of `choices` when there are any, telling `on_text` each piece.

        `latent` is the request's object of that name: effort, explore and the like.

        Raises:
            CommandError: nobody answers, or the gateway refuses the request.
        """
        import openai

        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        options: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name, value in (("max_tokens", max_tokens), ("temperature", temperature)):
            if value is not None:
                options[name] = value
        extra: dict[str, Any] = {}
        if latent:
            extra["latent"] = dict(latent)
        if choices:
            extra["structured_outputs"] = {"choice": list(choices)}
        options["extra_body"] = extra
        started = time.monotonic()
        try:
            response = self._client.chat.completions.with_raw_response.create(**options)
        except openai.APIStatusError as error:
            raise _refused(error, self.settings.url) from error
        except openai.APIConnectionError as error:
            late = isinstance(error, openai.APITimeoutError)
            raise unreachable(self.settings.url, late=late) from error
        headers = {
            name.removeprefix("x-latent-"): value
            for name, value in response.headers.items()
            if name.startswith("x-latent-")
        }
        try:
            return _read(response.parse(), headers, started, on_text)
        except openai.APIError as error:
            raise CommandError(f"the answer broke off: {error}", BROKE_OFF) from error


def _read(chunks: Any, headers: dict[str, str], started: float, on_text: Callable[[str], None]) -> Answer:
    """Return a stream's whole answer. Chunks are those of the openai client."""
    first_s: float | None = None
    pieces: list[str] = []
    finish: str | None = None
    usage: Any = None
    with chunks as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                finish = choice.finish_reason or finish
                if piece := choice.delta.content:
                    first_s = first_s or time.monotonic() - started
                    pieces.append(piece)
                    on_text(piece)
    if finish is None:
        raise CommandError("the answer broke off before its end", BROKE_OFF)
    return Answer(
        text="".join(pieces),
        headers=headers,
        finish_reason=finish,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        first_token_s=first_s,
        total_s=time.monotonic() - started,
    )


def _refused(error: "openai.APIStatusError", url: str) -> CommandError:
    """Return the gateway's own words; openai's exception takes the `error` object out of the body."""
    body = error.body if isinstance(error.body, dict) else {}
    if not body and error.status_code == 404:
        return stranger(url)
    return refused(error.status_code, body)
