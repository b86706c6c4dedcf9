"""GET, PUT and DELETE /v1/schedule: when nights start by themselves."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from config.cron import Cron
from memory.night import State, Trigger
from memory.state import ChosenSchedule
from server.api.deps import GatewayDep, OwnDep
from server.api.errors import refusals
from server.gateway import Gateway
from server.schedule import NEVER, Due
from server.tenants import Parts

router = APIRouter(prefix="/v1/schedule", tags=["schedule"])


def _cron(text: str) -> str:
    if text == NEVER:
        return text
    try:
        return Cron(text).text
    except ValueError as error:
        raise PydanticCustomError(
            "cron",
            "neither five fields of cron, such as `0 3 * * *`, nor `never`: {error}",
            {"error": str(error)},
        ) from None


class ScheduleChoice(BaseModel):
    """What an operator chooses instead of the settings; null, or left out: the setting."""

    model_config = ConfigDict(extra="forbid")

    cron: Annotated[str, Field(max_length=256), AfterValidator(_cron)] | None = Field(
        None, description="Cron's five fields, in UTC, or `never`."
    )
    episodes: int | None = Field(
        None, strict=True, ge=0, le=2**31 - 1, description="New episodes that start a night; 0: never."
    )


class ScheduleSettings(BaseModel):
    """What the settings say."""

    cron: str
    episodes: int


class DueNight(BaseModel):
    """A night that starts by itself."""

    trigger: Trigger
    at: datetime = Field(description="From when on.")


class PastNight(BaseModel):
    """A night that has ended."""

    id: str
    trigger: Trigger
    state: State
    created_at: datetime
    finished_at: datetime | None
    version: str | None


class ScheduleRead(BaseModel):
    """When nights start by themselves. Times are in UTC."""

    cron: str = Field(description="What holds: cron's five fields, or `never`.")
    episodes: int = Field(description="What holds: new episodes that start a night; 0: never.")
    chosen: ScheduleChoice = Field(description="What an operator chose instead of the settings.")
    settings: ScheduleSettings
    min_episodes: int = Field(description="With fewer a night is skipped.")
    new_episodes: int = Field(description="Since the last night that consolidated.")
    next_run: datetime | None = Field(description="The next time that cron names.")
    due: list[DueNight] = Field(description="Nights that start as soon as none is open.")
    erasure: DueNight | None = Field(
        description="The night that rids the active prior of rows trained on erased episodes."
    )
    running: str | None = Field(description="Id of the night that is queued or running.")
    last_run: PastNight | None


@router.get("", responses=refusals())
async def schedule(gateway: GatewayDep, own: OwnDep) -> ScheduleRead:
    """Return when nights start by themselves, what is due, and what came of the last one."""
    return await _read(gateway, own)


@router.put("", responses=refusals(507))
async def change(gateway: GatewayDep, own: OwnDep, chosen: ScheduleChoice) -> ScheduleRead:
    """Choose another schedule, on every gateway within a minute; it holds above the settings."""
    await own.nights.choose_schedule(ChosenSchedule(chosen.cron, chosen.episodes))
    return await _read(gateway, own)


@router.delete("", responses=refusals(507))
async def reset(gateway: GatewayDep, own: OwnDep) -> ScheduleRead:
    """Return to the settings."""
    await own.nights.choose_schedule(ChosenSchedule())
    return await _read(gateway, own)


async def _read(gateway: Gateway, own: Parts) -> ScheduleRead:
    found = await own.nights.outlook()
    last = found.last
    return ScheduleRead(
        cron=found.plan.cron,
        episodes=found.plan.episodes,
        chosen=ScheduleChoice.model_construct(cron=found.chosen.cron, episodes=found.chosen.episodes),
        settings=ScheduleSettings(cron=found.settings.cron, episodes=found.settings.episodes),
        min_episodes=gateway.settings.night_min_episodes,
        new_episodes=found.new_episodes,
        next_run=found.next_run,
        due=[_due(one) for one in found.due],
        erasure=_due(found.erasure) if found.erasure else None,
        running=found.running.id if found.running else None,
        last_run=PastNight(**{name: getattr(last, name) for name in PastNight.model_fields})
        if last
        else None,
    )


def _due(due: Due) -> DueNight:
    return DueNight(trigger=due.trigger, at=due.at)
