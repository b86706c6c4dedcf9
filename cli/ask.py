"""`latentevolve ask`: one question, its answer, and what steering did.

Owns the command and the report about one request. The answer goes to stdout, the report to stderr,
so that a pipe gets the answer alone.
"""

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cli.chat import Answer, Chat
from cli.failure import USAGE, CommandError
from cli.gateway import Gateway
from cli.options import ApiKey, Json, Url, given, load_settings
from cli.screen import Screen, printable
from config.settings import Effort


def ask(
    question: Annotated[
        str | None, typer.Argument(help="The question; read from stdin when left out.")
    ] = None,
    effort: Annotated[Effort | None, typer.Option("--effort", help="How much steering may do.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, help="0: greedy.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Served model; default: the first.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Stream an answer (stdout) and show what steering did (stderr)."""
    screen = Screen(as_json)
    settings = load_settings(gateway_url=url, api_key=api_key)
    text = question if question is not None else _from_stdin()
    with Gateway(settings) as gateway:
        served = gateway.models()
        if model and not {model, model.rpartition(":")[0]} & set(served):  # name, or name:effort
            raise CommandError(f"model {model} is not served", f"served: {', '.join(served)}")
        with Chat(settings, model or served[0]) as chat:
            answer = chat.ask(
                text,
                system=system,
                latent=given(effort=effort),
                max_tokens=max_tokens,
                temperature=temperature,
                on_text=lambda piece: None if as_json else _emit(piece),
            )
        if not as_json:
            _emit("\n")
        trace = gateway.settled_trace(answer.trace_id)
    screen.document(
        {"answer": answer.text, **{k: v for k, v in asdict(answer).items() if k != "text"}, "trace": trace}
    )
    report(screen, answer, trace)


def report(screen: Screen, answer: Answer, trace: dict[str, Any]) -> None:
    """Write what steering did for one request, on stderr."""
    headers = answer.headers
    screen.note("")
    mode, reason = (
        headers.get("mode", "unknown"),
        headers.get("reason", "no header: not a LatentEvolve gateway?"),
    )
    screen.note(f"mode      {mode} ({reason})", "bold")
    screen.note(f"effort    {headers.get('effort', '–')}, prior {headers.get('prior', 'none')}")
    for episode in trace.get("episodes", []):
        screen.note(f"recalled  {episode['id']}  similarity {episode['similarity']:.3f}")
    before, after = headers.get("reward-before"), headers.get("reward-after")
    if before or after:
        screen.note(f"reward    {before or '–'} → {after or '–'}")
    if remembered := trace.get("remembered"):
        why = trace.get("why_not_remembered")
        screen.note(f"memory    {remembered}{f' ({why})' if why else ''}")
    if answer.first_token_s is not None:
        screen.note(
            f"times     first token {answer.first_token_s:.2f} s, whole answer {answer.total_s:.2f} s"
        )
    if timings := trace.get("timings_s"):
        screen.note("steering  " + ", ".join(f"{name} {value:.3f} s" for name, value in timings.items()))
    usage = trace.get("usage") or {}
    steering = f"; steering generated {usage['generated_tokens']}" if usage.get("generated_tokens") else ""
    screen.note(f"tokens    {answer.prompt_tokens} prompt, {answer.completion_tokens} answer{steering}")
    screen.note(f"trace     {answer.trace_id or '–'}")


def _emit(piece: str) -> None:
    sys.stdout.write(printable(piece))
    sys.stdout.flush()


def _from_stdin() -> str:
    if sys.stdin.isatty():
        raise CommandError("no question", 'latentevolve ask "…", or pipe the question in', USAGE)
    text = sys.stdin.read().strip()
    if not text:
        raise CommandError("the question on stdin is empty", None, USAGE)
    return text
