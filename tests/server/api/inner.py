"""Stand-in for vLLM's app: a few of its routes on a scripted engine, steered as the real hook does.

Refusals have vLLM's shapes, so that a test can tell them from the gateway's own.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from model.engine import Decoding, SteeredPrompt
from server.steering.outcome import Answer, Outcome
from server.steering.prompt import RenderedPrompt, SteeringRejectedError
from server.steering.request import current_call
from tests.scripted_engine import ScriptedEngine

MODEL = "small"


def inner_app(engine: ScriptedEngine) -> FastAPI:
    """Return an app whose answers tell what body it saw; `state.steer` is set once steering exists."""
    app = FastAPI()
    app.state.steer = None
    app.state.answered = None
    """Told (trace id, answer) of what was decoded here."""
    app.state.release = asyncio.Event()
    """Streams stop after their first chunk until this is set."""
    app.state.release.set()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        told = {"call": current_call.get() is not None, "seen": await request.json()}
        return Response(json.dumps(told), media_type="application/json")

    async def answer(request: Request) -> Any:
        try:
            body = await request.json()
            if request.headers.get("content-type") != "application/json" or not isinstance(body, dict):
                raise ValueError("not what is asked for")
            json.dumps(body, ensure_ascii=False).encode()  # no lone surrogates
            effort = body.get("reasoning_effort")
            if not isinstance(effort, str | None) or effort == "extreme":
                raise ValueError("no such reasoning_effort")
        except (ValueError, RecursionError) as error:
            return _refusal(400, f"1 validation error: {str(error)!a}", "Bad Request", "body.there")
        if body.get("model", MODEL) != MODEL:
            return _refusal(404, f"The model {body['model']!a} does not exist.", "NotFoundError", "model")
        if body.get("break") == "before":
            raise RuntimeError("secret of the inside")
        asked = [body]
        if request.url.path.endswith("/batch"):
            asked = [{**body, "messages": messages} for messages in body["messages"]]
        answering = asyncio.create_task(_all_answered(engine, app, asked))
        leaving = asyncio.create_task(_left(request))
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not answering.done():  # as vLLM does, which then answers nothing
            answering.cancel()
            await asyncio.wait([answering])
            return None
        try:
            texts = answering.result()
        except SteeringRejectedError as error:
            return _refusal(400, str(error), "BadRequestError", error.param)
        text = texts[0]
        usage = _usage(request.url.path, text)
        if not body.get("stream"):
            said = {"seen": body, "length": request.headers["content-length"], "text": text, "id": _id()}
            said["named"] = request.headers.get("x-request-id")
            choices = [
                {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": each}}
                for i, each in enumerate(texts)
            ]
            return said | {"object": "chat.completion", "choices": choices, "usage": usage}
        stream = _stream(app, body, text, request.url.path, usage)
        return StreamingResponse(stream, media_type="text/event-stream")

    async def complete(request: Request) -> Any:
        return {"seen": await request.json(), "call": current_call.get() is not None}

    for path in (
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/responses",
        "/v1/messages",
        "/invocations",
    ):
        app.add_api_route(path, answer, methods=["POST"])
    app.add_api_route("/v1/completions", complete, methods=["POST"])
    app.middleware_stack = app.build_middleware_stack()  # as vLLM's app comes
    return app


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _all_answered(engine: ScriptedEngine, app: FastAPI, asked: list[dict[str, Any]]) -> list[str]:
    return [await _answered(engine, app, body) for body in asked]


async def _answered(engine: ScriptedEngine, app: FastAPI, body: dict[str, Any]) -> str:
    question = str(body.get("messages", [{}])[-1].get("content", "hello"))
    tokens = engine.render([{"role": "user", "content": question}])
    decoding = Decoding(max_tokens=int(body.get("max_tokens", 32)))
    latent = position = None
    call = current_call.get()
    if call is not None:
        call = call.conversation()
    if call is not None and call.options.effort == "none":
        call.outcome = Outcome("plain", "effort-none")
    elif call is not None:
        prompt = RenderedPrompt(
            tokens, engine.decode(tokens), question, decoding, asked_tokens=body.get("max_tokens")
        )
        # In a task of its own, as vLLM runs its handlers.
        call.outcome = await asyncio.create_task(app.state.steer(prompt, call.options, call.trace_id))
        call.traced = True
        latent, position = call.outcome.latent, call.outcome.position
    if call is not None and call.outcome is not None and call.outcome.answer is not None:
        return call.outcome.answer.text
    (generation,) = await engine.generate([SteeredPrompt(tokens, latent, position)], decoding)
    if call is not None and call.traced:
        app.state.answered(call.trace_id, Answer.of(generation))
    return generation.text


def _id() -> str:
    call = current_call.get()
    return f"chatcmpl-{call.trace_id if call is not None and call.traced else '0123456789abcdef'}"


def _refusal(status: int, message: str, kind: str, param: str | None) -> JSONResponse:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status)


def _usage(path: str, text: str) -> dict[str, int]:
    names = ("prompt", "completion") if path.endswith("/completions") else ("input", "output")
    counts = dict(zip((f"{name}_tokens" for name in names), (7, len(text)), strict=True))
    return counts | {"total_tokens": 7 + len(text)}


async def _stream(
    app: FastAPI, body: dict[str, Any], text: str, path: str, usage: dict[str, int]
) -> AsyncIterator[str]:
    yield _event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]})
    await app.state.release.wait()
    if body.get("break") == "after":
        raise RuntimeError("secret of the inside")
    if path == "/v1/responses":
        completed = {"type": "response.completed", "response": {"output": [], "usage": usage}}
        yield f"event: response.completed\n{_event(completed)}"
        return
    if body.get("stream_options", {}).get("include_usage"):
        yield _event({"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
