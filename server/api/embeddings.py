"""POST /v1/embeddings: retrieval keys, in OpenAI's shape."""

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import (
    BaseModel,
    Field,
    StrictInt,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from server.api.deps import GatewayDep
from server.api.errors import refusals
from server.api.options import without_suffix
from server.errors import InvalidRequestError, UnknownModelError
from server.keys import Prompt, keys_of

router = APIRouter(prefix="/v1", tags=["embeddings"])

MAX_INPUTS = 2048
"""As OpenAI has it."""


def _in_words(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError as error:  # which would name the branch of the union
        raise PydanticCustomError(
            "input",
            "expected a text, tokens, or a list of 1 to {most} of either, none of them empty",
            {"most": MAX_INPUTS},
        ) from error


Text = Annotated[str, StringConstraints(min_length=1)]
Tokens = Annotated[list[StrictInt], Field(min_length=1)]
Inputs = Annotated[
    Text
    | Tokens
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS)],
    WrapValidator(_in_words),
]


class EmbeddingRequest(BaseModel):
    """What is to be embedded."""

    model: str = Field(description="The served model.")
    input: Inputs = Field(
        description="A text, which is rendered as a user's message, or the tokens of a rendered prompt; "
        "or a list of either."
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Numbers, or base64 of float32 in little-endian order."
    )
    dimensions: int | None = Field(None, description="Only the keys' own: they are not cut.")
    user: str | None = Field(None, description="Not read.")


class Embedding(BaseModel):
    """One key."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """Keys, in the order of the inputs."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@router.post("/embeddings", responses=refusals(404))
async def embeddings(gateway: GatewayDep, asked: EmbeddingRequest) -> EmbeddingResponse:
    """Return the keys under which requests like these are remembered and recalled, of norm 1."""
    model = without_suffix({"model": asked.model}, gateway.served())["model"]
    if model not in gateway.served():
        raise UnknownModelError(f"The model `{model}` does not exist.", "model")
    size = gateway.engine.space.hidden_size
    if asked.dimensions not in (None, size):
        raise InvalidRequestError(f"keys have {size} dimensions, which cannot be cut", "dimensions")
    keys, tokens = await keys_of(gateway, _prompts(asked.input), "input")
    return EmbeddingResponse(
        data=[
            Embedding(
                index=index,
                embedding=base64.b64encode(key.astype("<f4").tobytes()).decode()
                if asked.encoding_format == "base64"
                else key.tolist(),
            )
            for index, key in enumerate(keys)
        ],
        model=model,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _prompts(given: Any) -> list[Prompt]:
    one = isinstance(given, str) or isinstance(given[0], int)
    return [given] if one else list(given)
