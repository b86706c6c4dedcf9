"""What a request chose: the `latent` object, a model suffix, or OpenAI's reasoning effort.

Owns the wire model of the `latent` object and the precedence of the ways to choose an effort.
Knows nothing of HTTP: it reads a parsed body and returns options and the body that vLLM gets.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from config.settings import Effort, SearchName, Settings
from server.errors import UnknownModelError
from server.steering.prompt import EffortSource, Options, SteeringRejectedError

CHAT = "/v1/chat/completions"
BATCH = "/v1/chat/completions/batch"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
INVOCATIONS = "/invocations"
STEERED_PATHS = frozenset({CHAT, BATCH, COMPLETIONS, RESPONSES, MESSAGES, INVOCATIONS})
"""Routes that read our options. Completions read them too, though they are never steered."""

EFFORTS: tuple[Effort, ...] = get_args(Effort)
REASONING_EFFORTS: Mapping[str, Effort] = {
    "none": "none",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}

PriorName = Annotated[str, StringConstraints(pattern=r"^(none|v[1-9][0-9]{0,8})$")]


class LatentObject(BaseModel):
    """The `latent` object of a request; None leaves the server's setting."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    effort: Effort | None = None
    search: SearchName | None = None
    k: int | None = Field(None, ge=1, le=64)
    floor: float | None = Field(None, ge=-1, le=1)
    steps: int | None = Field(None, ge=1, le=100)
    budget_tokens: int | None = Field(None, ge=1, le=10_000_000)
    deadline_s: float | None = Field(None, gt=0, le=3600)
    prior: PriorName | None = None
    store: bool | None = None
    explore: bool | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)


def read_options(
    body: dict[str, Any], path: str, settings: Settings, served: Collection[str]
) -> tuple[Options, dict[str, Any]]:
    """Return what the request chose, and the body without our fields (the same object if it had none).

    Args:
        body: The parsed JSON body.
        path: One of STEERED_PATHS.
        settings: The server's defaults.
        served: Names that vLLM answers to.

    Raises:
        SteeringRejectedError: naming the field that is wrong.
        UnknownModelError: the effort after the model's colon does not exist.
    """
    latent = _latent_object(body.get("latent"))
    _, suffix = _split_model(body.get("model"), served)
    effort, source = _effort(latent, suffix, body, path, settings)
    store = latent.store is not False and body.get("store") is not False
    chosen = latent.model_dump(exclude={"effort", "store"})
    options = Options.of(settings, effort, source, store=store, who=_who(body, path), **chosen)
    rest = without_suffix(body, served)
    if "latent" in body:
        rest = {name: value for name, value in rest.items() if name != "latent"}
    return options, rest


def without_suffix(body: dict[str, Any], served: Collection[str]) -> dict[str, Any]:
    """Return the body with the effort taken off its model's name (the same object if there is none).

    Raises:
        UnknownModelError: the effort after the model's colon does not exist.
    """
    model, suffix = _split_model(body.get("model"), served)
    return body if suffix is None else {**body, "model": model}


def _latent_object(value: Any) -> LatentObject:
    if value is None:
        return LatentObject()
    if not isinstance(value, dict):
        raise SteeringRejectedError("latent: expected an object", "latent")
    # Not left to pydantic, which would make an error of each before one is shown.
    unknown = next((name for name in value if name not in LatentObject.model_fields), None)
    if unknown is not None:
        known, field = ", ".join(LatentObject.model_fields), f"latent.{unknown}"
        raise SteeringRejectedError(f"{field}: unknown option; known are {known}", field)
    try:
        return LatentObject.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(["latent", *(str(part) for part in first["loc"][:1])])
        raise SteeringRejectedError(f"{field}: {first['msg']}", field) from error


def _split_model(model: Any, served: Collection[str]) -> tuple[Any, Effort | None]:
    """Return the served name and the effort after its last colon, if that is what it is."""
    if not isinstance(model, str) or model in served:
        return model, None
    name, colon, suffix = model.rpartition(":")
    if not colon or name not in served:
        return model, None  # vLLM says that it does not serve this
    for effort in EFFORTS:
        if suffix == effort:
            return name, effort
    raise UnknownModelError(
        f"The model `{model}` does not exist: `{name}` may be followed by one of "
        + ", ".join(f"`:{effort}`" for effort in EFFORTS),
        "model",
    )


def _effort(
    latent: LatentObject, suffix: Effort | None, body: dict[str, Any], path: str, settings: Settings
) -> tuple[Effort, EffortSource]:
    if latent.effort is not None:
        return latent.effort, "latent.effort"
    if suffix is not None:
        return suffix, "model"
    value = _reasoning_effort(body, path) if settings.reasoning_effort_steers else None
    if isinstance(value, str) and value in REASONING_EFFORTS:
        return REASONING_EFFORTS[value], "reasoning_effort"
    return settings.default_effort, "default"


def _who(body: dict[str, Any], path: str) -> str | None:
    """Return a digest of what names the user: OpenAI's `safety_identifier` or `user`, Anthropic's user id."""
    if path == MESSAGES:
        metadata = body.get("metadata")
        named = metadata.get("user_id") if isinstance(metadata, dict) else None
    else:
        named = body.get("safety_identifier") or body.get("user")
    if not isinstance(named, str) or not named:
        return None
    return hashlib.sha256(named.encode(errors="surrogatepass")).hexdigest()


def _reasoning_effort(body: dict[str, Any], path: str) -> Any:
    """Return OpenAI's field. It stays in the body: vLLM reads it too, and refuses what it may not be."""
    if path in (CHAT, BATCH, INVOCATIONS):
        return body.get("reasoning_effort")
    if path == RESPONSES and isinstance(body.get("reasoning"), dict):
        return body["reasoning"].get("effort")
    return None
