"""GET and PUT /v1/experiments: whether steering is worth it, and whether it is on."""

from dataclasses import asdict
from datetime import datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from memory.experiment import ARMS, Comparison, Switch
from server.api.deps import AccessDep, GatewayDep
from server.api.errors import refusals
from server.api.priors import RowEvidence
from server.steering.experiment import Known

router = APIRouter(prefix="/v1/experiments", tags=["experiments"])


class ArmRead(BaseModel):
    """One arm by one metric."""

    n: int = Field(description="Users, else prompts, that have a value; each counts once.")
    mean: float | None


class MetricRead(BaseModel):
    """Both arms by one metric."""

    steered: ArmRead
    holdout: ArmRead
    difference: float | None = Field(description="Mean of the steered arm less that of the other.")
    interval: tuple[float, float] | None = Field(
        description="Where the true difference lies, 95 %, however often one looks; null: too few values."
    )
    evidence: RowEvidence | None = Field(
        description="That steering does good or harm; null: this metric decides nothing."
    )


class Metrics(BaseModel):
    """What both arms are compared by."""

    rating: MetricRead = Field(description="What people said of answers, from 0 to 1.")
    agreement: MetricRead = Field(description="Share of answers that are what samples agree on.")
    tokens: MetricRead = Field(description="Tokens of answers.")
    latency_s: MetricRead = Field(description="Seconds from the assignment to the answer's end.")


class SwitchRead(BaseModel):
    """Whether requests are steered at all."""

    steering: Literal["on", "off"]
    cause: Literal["evidence", "operator"] | None = Field(description="Who turned it; null: nobody ever did.")
    message: str = Field(description="What the evidence said.")
    at: datetime | None


class ExperimentRead(BaseModel):
    """The experiment of one tenant."""

    tenant: str
    share: float = Field(description="Of users, else prompts, that are held out; 0: there is no experiment.")
    switch: SwitchRead
    metrics: Metrics


class ExperimentList(BaseModel):
    """The experiment of the API key's tenant."""

    object: Literal["list"] = "list"
    data: list[ExperimentRead]


class Turn(BaseModel):
    """Whether requests are to be steered."""

    model_config = ConfigDict(extra="forbid")

    steering: Literal["on", "off"] = Field(
        description="`off`: every request is answered plainly; `on`: the experiment begins anew."
    )


@router.get("", responses=refusals())
async def experiments(gateway: GatewayDep, access: AccessDep) -> ExperimentList:
    """Return what both arms are worth, as of some seconds ago, and whether steering is on."""
    return ExperimentList(data=[_read(access.tenant, gateway.experiment.known(access.tenant))])


@router.put("", responses=refusals(507))
async def turn(gateway: GatewayDep, access: AccessDep, wanted: Turn) -> ExperimentRead:
    """Turn steering off, or on again after the evidence or an operator has turned it off."""
    tenant, switch = access.tenant, Switch(off=wanted.steering == "off")
    return _read(tenant, await gateway.experiment.turn(tenant, switch))


def _read(tenant: str, known: Known) -> ExperimentRead:
    switch = known.switch
    return ExperimentRead(
        tenant=tenant,
        share=known.share,
        switch=SwitchRead(
            steering="off" if switch.off else "on",
            cause=switch.cause if switch.at else None,
            message=switch.message,
            at=switch.at,
        ),
        metrics=Metrics(**{metric: _metric(one) for metric, one in known.comparisons.items()}),
    )


def _metric(one: Comparison) -> MetricRead:
    evidence = one.evidence
    arms = {
        arm: ArmRead(n=one.arms[arm].n, mean=one.arms[arm].mean if one.arms[arm].n else None) for arm in ARMS
    }
    return MetricRead(
        **arms,
        difference=one.difference,
        interval=one.interval,
        evidence=RowEvidence(**asdict(evidence)) if evidence else None,
    )
