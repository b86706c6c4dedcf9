"""A small gateway with the real routes and no model, served over HTTP.

Owns scripted answers; keeps what it was asked, so that tests can tell what was never sent.
"""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from tests.cli.ports import free_port

MODEL = "small"
EPISODE = "5e6f7a80-0000-4000-8000-000000000001"
EVIDENCE = {
    "clusters": [
        {
            "row": 0,
            "examples": 31,
            "held_to_choices": 31,
            "like": "World",
            "n": 28,
            "mean": 0.25,
            "e_value": 41.5,
            "e_against": 0.02,
            "standing": "serves",
            "candidate": 0.8,
            "baseline": 0.55,
            "random": 0.31,
            "mean_latent": None,
        },
        {
            "row": 1,
            "examples": 9,
            "held_to_choices": 0,
            "like": "The answer is 7",
            "n": 0,
            "mean": 0.0,
            "e_value": 1.0,
            "e_against": 1.0,
            "standing": "on trial",
            "candidate": None,
            "baseline": None,
            "random": None,
            "mean_latent": None,
        },
    ]
}


SERVING = {"n": 28, "mean": 0.31, "e_value": 44.9, "e_against": 0.2, "standing": "serves"}


@dataclass
class FakeGateway:
    """State and behaviour that a test sets before it runs a command."""

    key: str | None = None
    answers: dict[str, str] = field(default_factory=dict)
    rounds: bool = False
    """Whether the first answer to a prompt is another one than those from its prefix cache."""
    read: set[str] = field(default_factory=set)
    """Answer by text that the question holds; otherwise `Business`."""
    mode: str = "recall"
    refusal: str | None = None
    broken: bool = False
    """Whether answers break off in the middle."""
    nights: list[dict[str, Any]] = field(default_factory=list)
    older_nights: list[dict[str, Any]] = field(default_factory=list)
    """Records that successive looks at a night see; the last one stays."""
    night_error: int | None = None
    share: float = 0.0
    """Of users who are held out."""
    steering: str = "on"
    cut: bool = False
    """Whether streams of events break off after one."""
    chosen: dict[str, Any] = field(default_factory=lambda: {"cron": None, "episodes": None})
    active: str | None = "v1"
    pinned: bool = False
    versions: list[str] = field(default_factory=lambda: ["v1", "v2"])
    rows: dict[str, Any] = field(default_factory=lambda: {"v1/0": dict(SERVING)})
    """Evidence about rows of the active prior."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of chat completions."""
    said: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of feedback."""
    remembered: dict[str, str] = field(default_factory=dict)
    """Questions at effort medium by the id of their episode; a night's labels are all of these."""
    label: str | None = None
    """What each of the labels is; None: the answer that is remembered."""
    recalls: str = "Business"
    """The answer that is remembered, whatever the client got."""
    url: str = ""

    def app(self) -> FastAPI:
        """Return the routes."""
        app = FastAPI()

        @app.middleware("http")
        async def check_key(request: Request, call_next: Any) -> Any:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return error(401, "invalid key")
            return await call_next(request)

        @app.get("/readyz")
        def readyz() -> dict[str, Any]:
            return {"ready": True, "engine": True, "memory": True, "checks": [], "steering": True}

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Any:
            body = await request.json()
            self.asked.append(body)
            if self.refusal:
                return error(400, self.refusal, "messages")
            effort = body.get("latent", {}).get("effort", "low")
            steered = effort != "none"
            headers = {
                "x-latent-mode": self.mode if steered else "plain",
                "x-latent-reason": "recalled" if steered else "effort-none",
                "x-latent-effort": effort,
                "x-latent-prior": self.active or "none",
                "x-latent-episodes": EPISODE if steered else "",
                "x-latent-trace": str(uuid.uuid4()),
            }
            if effort == "medium":
                self.remembered[headers["x-latent-trace"]] = body["messages"][-1]["content"]
                headers |= {"x-latent-reward-before": "0.4000", "x-latent-reward-after": "0.7000"}
            return StreamingResponse(self._chunks(body), media_type="text/event-stream", headers=headers)

        @app.post("/v1/feedback")
        async def feedback(request: Request) -> dict[str, Any]:
            self.said.append(await request.json())
            return {"feedback_id": EPISODE}

        @app.get("/v1/latent/traces/{trace_id}")
        def trace(trace_id: str) -> dict[str, Any]:
            return {
                "id": trace_id,
                "mode": self.mode,
                "reason": "recalled",
                "episodes": [{"id": EPISODE, "similarity": 0.912}],
                "usage": {"prompt_tokens": 90, "generated_tokens": 24, "forward_tokens": 200},
                "timings_s": {"recall": 0.01, "refine": 1.25},
                "remembered": "stored",
                "episode_id": trace_id,
            }

        @app.get("/v1/memory/episodes/{episode}")
        def episode(episode: str) -> dict[str, Any]:
            return {"id": episode, "prompt_text": self.remembered[episode], "answer_text": self.recalls}

        @app.get("/v1/memory/stats")
        def stats() -> dict[str, Any]:
            return {
                "space": "aa11",
                "spaces": {
                    "aa11": {
                        "episodes": 6,
                        "seen": 9,
                        "reward_mean": 0.75,
                        "reward_histogram": [0, 0, 0, 0, 0, 1, 1, 3, 1, 0],
                        "oldest": "2031-01-01T00:00:00+00:00",
                        "newest": "2031-01-02T00:00:00+00:00",
                    }
                },
                "prior": {"version": self.active, "pinned": self.pinned, "rows": self.rows},
                "requests": {"total": 10, "steered": 4, "by_mode": {"plain": 6, "recall": 4}},
                "hit_rate": 0.5,
                "exploring": {"waiting": 3, "running": 1, "tokens_last_hour": 420},
                "pending_writes": 0,
                "dropped_writes": 0,
                "refused_writes": 7,
            }

        @app.get("/v1/experiments")
        def experiments() -> dict[str, Any]:
            return {"object": "list", "data": [self._experiment()]}

        @app.put("/v1/experiments")
        async def turn(request: Request) -> dict[str, Any]:
            self.steering = (await request.json())["steering"]
            return self._experiment()

        @app.get("/v1/priors")
        def priors() -> dict[str, Any]:
            return {
                "active": self.active,
                "pinned": self.pinned,
                "versions": [
                    manifest(version) | ({"labels": ["serving"]} if version == self.active else {})
                    for version in self.versions
                ],
            }

        @app.get("/v1/priors/compare")
        def compare(a: str, b: str) -> Any:
            if not {a, b} <= set(self.versions):
                return error(404, "no prior", "a")
            return {
                "a": a,
                "b": b,
                "rows": {"both": [], "only_a": [f"{a}/0"], "only_b": [f"{b}/0", f"{b}/1"]},
                "clusters": [
                    {
                        "a": f"{a}/0",
                        "b": f"{b}/0",
                        "same": False,
                        "key_cosine": 0.91,
                        "a_covered": 1.0,
                        "b_covered": 0.75,
                        "latent_cosine": 0.42,
                        "latent_distance": 1.1,
                        "a_evidence": dict(SERVING),
                        "b_evidence": None,
                    },
                    {"a": None, "b": f"{b}/1", "same": False, "a_evidence": None, "b_evidence": None}
                    | dict.fromkeys(
                        ("key_cosine", "a_covered", "b_covered", "latent_cosine", "latent_distance")
                    ),
                ],
            }

        @app.post("/v1/priors/rollback")
        def rollback() -> Any:
            if self.active is None:
                return error(409, "nothing is known to have been active before no prior", "version")
            self.active, self.pinned = None, True
            return {"active": None, "pinned": True}

        @app.post("/v1/priors/release")
        def release() -> dict[str, Any]:
            self.pinned = False
            return {"active": self.active, "pinned": False}

        @app.get("/v1/priors/{version}")
        def prior(version: str) -> Any:
            if version not in self.versions:
                return error(404, f"no prior {version}", "version")
            labels = [[episode, self.label] for episode in self.remembered]
            known = {
                "lineage": [{"version": name} for name in (version, "v0")],
                "trained_on": {"dataset_sha256": "5eed"},
                "evidence_now": {f"{version}/0": dict(SERVING) | {"n": 31}},
            }
            return {**manifest(version), "settings": {"steps": 25}, "episode_labels": labels, **known}

        @app.post("/v1/priors/{version}/activate")
        def activate(version: str) -> Any:
            if version not in [*self.versions, "none"]:
                return error(404, f"no prior {version}", "version")
            self.active, self.pinned = None if version == "none" else version, True
            return {"active": self.active, "pinned": True}

        @app.post("/v1/consolidations", status_code=202)
        async def start(request: Request) -> Any:
            if self.night_error:
                return error(self.night_error, "not now")
            assert (await request.json()) == {"trigger": "cli"}
            return self._night()

        @app.get("/v1/consolidations")
        def nights(limit: int, cursor: str = "0") -> dict[str, Any]:
            begin, listed = int(cursor), [self._night(), *self.older_nights]
            more = len(listed) > begin + limit
            page = {"object": "list", "data": listed[begin : begin + limit], "has_more": more}
            return page | {"next_cursor": str(begin + limit) if more else None}

        @app.get("/v1/consolidations/{night_id}/events")
        def events(night_id: str) -> StreamingResponse:
            return StreamingResponse(self._events(), media_type="text/event-stream")

        @app.post("/v1/consolidations/{night_id}/cancel")
        def cancel(night_id: str) -> Any:
            (open_,) = self.nights
            if open_["state"] not in ("queued", "running"):
                return error(409, f"night {night_id} has ended as {open_['state']}", "night_id")
            self.nights = [record("cancelled", id=night_id)]
            return self.nights[0]

        @app.get("/v1/schedule")
        def schedule() -> dict[str, Any]:
            return self._schedule()

        @app.put("/v1/schedule")
        async def change_schedule(request: Request) -> Any:
            body = await request.json()
            if body["cron"] == "at noon":
                return error(400, "cron: neither five fields nor never", "cron")
            self.chosen = body
            return self._schedule()

        @app.delete("/v1/schedule")
        def reset_schedule() -> dict[str, Any]:
            self.chosen = {"cron": None, "episodes": None}
            return self._schedule()

        @app.get("/v1/consolidations/{night_id}")
        def night(night_id: str) -> Any:
            return self._night() if self.nights else error(404, f"no consolidation {night_id}")

        return app

    def _events(self) -> Iterator[str]:
        told: dict[str, Any] = {}
        while True:
            time.sleep(0.15)  # bars are drawn ten times a second
            night = self._night()
            yield ": a ping\r\n\r\n"
            if night != told:
                yield f"id: 1\r\nevent: progress\r\ndata: {json.dumps(night)}\r\n\r\n"
            told = night
            if self.cut or night["state"] not in ("queued", "running"):
                return

    def _experiment(self) -> dict[str, Any]:
        arms = {"steered": {"n": 950, "mean": 0.81}, "holdout": {"n": 52, "mean": 0.64}}
        nothing = {"n": 0, "mean": None}
        rating = {**arms, "difference": 0.17, "interval": [0.02, 0.32], "evidence": dict(SERVING)}
        other = {
            "steered": nothing,
            "holdout": nothing,
            "difference": None,
            "interval": None,
            "evidence": None,
        }
        off = self.steering == "off"
        return {
            "tenant": "default",
            "share": self.share,
            "switch": {
                "steering": self.steering,
                "cause": "evidence" if off else None,
                "message": "rating is 0.30 lower" if off else "",
                "at": "2031-01-01T12:00:00Z" if off else None,
            },
            "metrics": {"rating": rating, "agreement": other, "tokens": other, "latency_s": other},
        }

    def _schedule(self) -> dict[str, Any]:
        settings = {"cron": "0 3 * * *", "episodes": 200}
        chosen = {name: value for name, value in self.chosen.items() if value is not None}
        return {
            **settings,
            **chosen,
            "chosen": self.chosen,
            "settings": settings,
            "min_episodes": 16,
            "new_episodes": 7,
            "next_run": "2031-01-02T03:00:00Z",
            "due": [],
            "erasure": {"trigger": "erasure", "at": "2031-01-01T13:00:00Z"},
            "running": None,
            "last_run": {
                "id": EPISODE,
                "trigger": "schedule",
                "state": "promoted",
                "finished_at": "2031-01-01T03:01:00Z",
            },
        }

    def _night(self) -> dict[str, Any]:
        return self.nights.pop(0) if len(self.nights) > 1 else self.nights[0]

    def _chunks(self, body: dict[str, Any]) -> Iterator[str]:
        question = body["messages"][-1]["content"]
        text = next((answer for part, answer in self.answers.items() if part in question), "Business")
        if self.rounds and question not in self.read:
            text += ", rounded otherwise"
        self.read.add(question)
        for piece in (text[:3], text[3:]):
            yield event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            if self.broken:
                raise ConnectionResetError("the engine is gone")
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}
        yield event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


def record(state: str, **fields: Any) -> dict[str, Any]:
    """Return a night's record."""
    return {
        "id": "0e0e0e0e-0000-4000-8000-000000000001",
        "space": "aa11",
        "trigger": "cli",
        "state": state,
        "phase": "snapshot",
        "done": 0,
        "total": 0,
        "message": "",
        "episodes": 24,
        "version": None,
        "parent": None,
        "evidence": None,
        "error": None,
        **fields,
    }


def manifest(version: str) -> dict[str, Any]:
    """Return a prior's manifest, shortened as the list shows it."""
    return {
        "version": version,
        "space": "aa11",
        "parent": None,
        "created_at": "2031-01-01T03:00:00+00:00",
        "episodes": 24,
        "evidence": EVIDENCE["clusters"][: 2 if version == "v1" else 1],
    }


def event(fields: dict[str, Any]) -> str:
    """Return one server-sent event of a chat completion."""
    head = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return f"data: {json.dumps(head | fields)}\n\n"


def error(status: int, message: str, param: str | None = None) -> JSONResponse:
    """Return an OpenAI-shaped error."""
    body = {"error": {"message": message, "type": "Error", "param": param, "code": status}}
    return JSONResponse(body, status_code=status)


class Served:
    """A running uvicorn in a thread."""

    def __init__(self, fake: FakeGateway) -> None:
        port = free_port()
        fake.url = f"http://127.0.0.1:{port}"
        config = uvicorn.Config(fake.app(), port=port, log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def close(self) -> None:
        """End the server."""
        self._server.should_exit = True
        self._thread.join(10)
