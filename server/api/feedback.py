"""POST /v1/feedback: what people say of answers, in TensorZero's shape."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from memory.episode import new_id
from memory.state import Feedback
from server.api.deps import AccessDep, GatewayDep, trace_of
from server.api.errors import refusals
from server.feedback import Metric, take

router = APIRouter(prefix="/v1", tags=["feedback"])

LONGEST_TEXT = 262_144
MOST_TAGS = 32


def _writable(text: str) -> str:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise PydanticCustomError("text", "holds a zero or a lone surrogate, which is no text")
    return text


Tag = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_writable)]


class FeedbackRequest(BaseModel):
    """What is said of which answer."""

    model_config = ConfigDict(extra="forbid")

    inference_id: Annotated[str, StringConstraints(min_length=1, max_length=256)] = Field(
        description="`id` of the completion, message or response, or the id of its trace (`x-latent-trace`)."
    )
    metric_name: Metric = Field(
        description="`rating`: how good the answer is; `demonstration`: the answer that should have been "
        "given; `comment`: kept, and read by people only."
    )
    value: StrictBool | StrictInt | StrictFloat | StrictStr = Field(
        description="Of a rating true, false or a number from 0 to 1; else a text."
    )
    tags: dict[Tag, Tag] = Field({}, max_length=MOST_TAGS, description="Kept with it.")
    feedback_id: UUID | None = Field(None, description="Sent again under the same id, it counts once.")

    @field_validator("value", mode="before")
    @classmethod
    def _of_the_metric(cls, value: Any, info: ValidationInfo) -> Any:
        metric = info.data.get("metric_name")
        if metric == "rating":
            if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
                raise PydanticCustomError("rating", "a rating is true, false, or a number from 0 to 1")
        elif metric is not None:
            if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_TEXT:
                raise PydanticCustomError(
                    "text",
                    "a {metric} is a text of 1 to {most} characters",
                    {"metric": metric, "most": LONGEST_TEXT},
                )
            _writable(value)
        return value


class FeedbackResponse(BaseModel):
    """Under which id it is kept."""

    feedback_id: str


@router.post("/feedback", responses=refusals(404, 409, 507))
async def feedback(
    gateway: GatewayDep, access: AccessDep, request: Request, asked: FeedbackRequest
) -> FeedbackResponse:
    """Take what somebody says of an answer: memory learns from it, and forgets what is called wrong.

    400: a value that the metric does not have, or a demonstration that its request did not allow. 404: there
    is no such answer any more, or what it was is not kept. 409: the id was used for something else.
    """
    said = Feedback(
        id=str(asked.feedback_id or new_id()),
        trace=trace_of(asked.inference_id),
        metric_name=asked.metric_name,
        value=asked.value,
        tags=asked.tags,
        tenant=access.tenant,
    )
    with gateway.tracing.request("feedback", request.headers, {"gen_ai.response.id": asked.inference_id}):
        return FeedbackResponse(feedback_id=(await take(gateway, said)).id)
