"""Which scope each route asks for, vLLM's included.

Owns the one table; a route that is not in it asks for `admin` of the default tenant. Knows nothing of who
asks (`server/access.py`).
"""

from dataclasses import dataclass

from starlette.routing import compile_path

from memory.api_keys import Scope


@dataclass(frozen=True)
class Rule:
    """What a route asks for."""

    scope: Scope | None
    """None: any API key."""
    everybody: bool = True
    """Whether each tenant has it for itself; else it concerns all, and only the default one has it."""


PUBLIC = frozenset({"/healthz", "/readyz", "/metrics", "/health", "/ping", "/dashboard"})
"""Paths that ask for no API key."""
PUBLIC_FOLDER = "/dashboard/"
"""The dashboard's files, which hold no data."""

ANY = Rule(None)
INFER = Rule("infer")
INFER_UNPARTED = Rule("infer", everybody=False)
"""vLLM parts nothing of these by tenant: it takes no `cache_salt`, or keeps what it answers."""
READ = Rule("memory:read")
WRITE = Rule("memory:write")
ADMIN = Rule("admin")
OPERATE = Rule("admin", everybody=False)

TABLE: dict[Rule, tuple[str, ...]] = {
    ANY: (
        "GET /docs",
        "GET /openapi.json",
        "GET /static/{path:path}",
        "GET /v1/models",
        "GET /version",
    ),
    INFER: (
        "POST /v1/chat/completions",
        "POST /v1/chat/completions/batch",
        "POST /v1/completions",
        "POST /v1/responses",
        "POST /v1/messages",
        "POST /v1/messages/count_tokens",
        "POST /invocations",
        "POST /tokenize",
        "POST /detokenize",
        "POST /v1/chat/completions/render",
        "POST /v1/completions/render",
        "POST /v1/responses/render",
        "POST /v1/messages/render",
        "POST /v1/chat/completions/derender",
        "POST /v1/completions/derender",
        "POST /inference/v1/generate",
        "POST /generative_scoring",
        "POST /v1/systemone",
        "POST /v1/embeddings",
        "POST /v1/feedback",
    ),
    INFER_UNPARTED: (
        "GET /v1/responses/{response_id}",
        "POST /v1/responses/{response_id}/cancel",
        "POST /v1/audio/transcriptions",
        "POST /v1/audio/translations",
        "WEBSOCKET /v1/realtime",
        "POST /cohere/v2/chat",
        "POST /cohere/v2/chat/render",
        "POST /pooling",
        "POST /classify",
        "POST /score",
        "POST /v1/score",
        "POST /rerank",
        "POST /v1/rerank",
        "POST /v2/rerank",
        "POST /v2/embed",
    ),
    READ: (
        "GET /v1/latent/timeline",
        "GET /v1/latent/traces",
        "GET /v1/latent/traces/{trace_id}",
        "GET /v1/memory/stats",
        "GET /v1/memory/map",
        "GET /v1/memory/clusters",
        "GET /v1/memory/episodes",
        "GET /v1/memory/episodes/{episode_id}",
        "POST /v1/memory/search",
        "GET /v1/memory/export",
        "GET /v1/experiments",
        "GET /v1/priors",
        "GET /v1/priors/compare",
        "GET /v1/priors/{version}",
        "GET /v1/consolidations",
        "GET /v1/consolidations/{night_id}",
        "GET /v1/consolidations/{night_id}/events",
        "GET /v1/schedule",
    ),
    WRITE: (
        "DELETE /v1/memory/episodes",
        "DELETE /v1/memory/episodes/{episode_id}",
        "DELETE /v1/latent/traces/{trace_id}",
        "POST /v1/memory/import",
    ),
    ADMIN: (
        "PUT /v1/experiments",
        "POST /v1/priors/release",
        "POST /v1/priors/rollback",
        "POST /v1/priors/{version}/activate",
        "POST /v1/consolidations",
        "POST /v1/consolidations/{night_id}/cancel",
        "PUT /v1/schedule",
        "DELETE /v1/schedule",
        "POST /v1/keys",
        "GET /v1/keys",
        "GET /v1/keys/{key_id}",
        "POST /v1/keys/{key_id}/rotate",
        "POST /v1/keys/{key_id}/revoke",
    ),
    OPERATE: (
        "POST /v1/memory/compact",
        "GET /load",
        "GET /kv_event_sources",
    ),
}

_EXACT: dict[tuple[str, str], Rule] = {}
_PATTERNS = []
for _rule, _routes in TABLE.items():
    for _route in _routes:
        _method, _path = _route.split(" ")
        if "{" in _path:
            _PATTERNS.append((_method, compile_path(_path)[0], _rule))
        else:
            _EXACT[_method, _path] = _rule


def is_public(path: str) -> bool:
    """Return whether a path asks for no API key."""
    return path in PUBLIC or path.startswith(PUBLIC_FOLDER)


def rule_of(method: str, path: str) -> Rule | None:
    """Return what a request asks for; None: nothing, the route is public.

    Args:
        method: Of HTTP, or `WEBSOCKET`.
        path: As routes are matched with it.
    """
    if is_public(path) and method != "WEBSOCKET":
        return None
    method = "GET" if method == "HEAD" else method
    exact = _EXACT.get((method, path))
    if exact is not None:
        return exact
    for wanted, pattern, rule in _PATTERNS:
        if method == wanted and pattern.match(path):
            return rule
    return OPERATE
