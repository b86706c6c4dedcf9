"""Routes under /v1/priors: versions of the prior, and which of them answers."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from memory.evidence import Evidence
from memory.registry import NothingBeforeError, UnknownVersionError
from server.api.deps import OwnDep
from server.api.errors import refusals
from server.errors import ConflictError, NotFoundError
from server.priors import Label, trained_on

router = APIRouter(prefix="/v1/priors", tags=["priors"])

_LONG = frozenset({"labels", "episode_ids", "learned", "trainings", "rows"})
_VERSION = re.compile(r"v[1-9][0-9]{0,8}")


class RowEvidence(BaseModel):
    """What is known of answering with a row instead of what would answer without it."""

    n: int = Field(description="Prompts that were compared.")
    mean: float = Field(description="Mean difference of the outcomes, -1 to 1.")
    e_value: float = Field(description="That the row does good; 20 is proof.")
    e_against: float = Field(description="That the row does harm; 20 is proof.")
    standing: Literal["on trial", "serves", "retired"]


class ClusterEvidence(BaseModel):
    """What its night found of one new row."""

    model_config = ConfigDict(extra="allow")

    row: int | None = Field(None, description="Number of the row in its version.")
    examples: int | None = Field(None, description="Prompts of its cluster.")
    like: str | None = Field(None, description="A label of the cluster.")
    n: int | None = Field(None, description="Prompts that judged it.")
    mean: float | None = None
    e_value: float | None = None
    e_against: float | None = None
    standing: str | None = None
    candidate: float | None = Field(None, description="Mean outcome with the row.")
    baseline: float | None = Field(None, description="Mean outcome as served when the night began.")
    random: float | None = Field(None, description="Mean outcome with a random latent of the same norm.")


class PriorSummary(BaseModel):
    """A version's manifest without its long lists. Older builds wrote down less."""

    model_config = ConfigDict(extra="allow")

    version: str
    space: str
    labels: list[Label] = Field(
        [],
        description="Of the active version: some of its rows serve, some are on trial, an operator chose it.",
    )
    parent: str | None = Field(None, description="Version that was active when its night began.")
    created_at: str | None = None
    night: str | None = Field(None, description="Id of the consolidation that it came of.")
    episodes: int | None = Field(None, description="Episodes that its night learned from or was judged by.")
    row_ids: list[str] = Field([], description="Its rows; those of earlier versions were carried on.")
    evidence: list[ClusterEvidence] = Field([], description="What its night found of each new row.")
    error: str | None = Field(None, description="Why it cannot be read.")


class Activation(BaseModel):
    """That a version became the active one."""

    version: str | None = Field(description="null: no prior.")
    cause: str = Field(description="night, operator, rollback, or earlier build: not known.")
    at: datetime


class PriorList(BaseModel):
    """All versions of the served space, oldest first."""

    active: str | None
    pinned: bool = Field(description="An operator chose what is active, so nights leave it so.")
    versions: list[PriorSummary]
    activations: list[Activation] = Field(description="The last 20, newest first.")


class Window(BaseModel):
    """When prompts came, in seconds since 1970."""

    oldest: float
    newest: float


class TrainedOn(BaseModel):
    """What a version learned from; null: its build did not write it down."""

    episodes: int
    prompts: int = Field(description="Prompts that some row learned from, carried rows included.")
    episodes_sha256: str | None = Field(description="Of the sorted episode ids, one a line.")
    dataset_sha256: str | None = Field(description="Of ids, prompts, clusters and labels of its night.")
    prompts_sha256: str | None = Field(description="Of the sorted digests of the prompts, one a line.")
    window: Window | None


class Ancestor(BaseModel):
    """A version that a version came of."""

    version: str
    created_at: str | None
    night: str | None


class PriorRead(PriorSummary):
    """A version's whole manifest, with what is known of it by now."""

    evidence_now: dict[str, RowEvidence] = Field(description="By the id of the row, night and day.")
    lineage: list[Ancestor] = Field(description="Itself, its parent, and so on to the first.")
    trained_on: TrainedOn
    episode_labels: list[tuple[str, str | None]] = Field(
        description="Choice that the night took for right in each episode; null: the answer as remembered."
    )


class ClusterMatch(BaseModel):
    """A cluster in two versions; null: one of them has none."""

    a: str | None = Field(description="Id of a's row.")
    b: str | None
    same: bool = Field(description="Both have the very same row.")
    key_cosine: float | None = Field(description="The highest cosine of a centroid of a to one of b.")
    a_covered: float | None = Field(description="Share of a's centroids that b's row covers.")
    b_covered: float | None
    latent_cosine: float | None
    latent_distance: float | None = Field(description="Relative to the norms of the two.")
    a_evidence: RowEvidence | None
    b_evidence: RowEvidence | None


class RowSets(BaseModel):
    """Which rows two versions have, by id."""

    both: list[str]
    only_a: list[str]
    only_b: list[str]


class PriorComparison(BaseModel):
    """Two versions side by side."""

    a: str
    b: str
    rows: RowSets
    clusters: list[ClusterMatch]


class Active(BaseModel):
    """Which version answers now."""

    active: str | None
    pinned: bool


@router.get("", response_model_exclude_unset=True, responses=refusals())
async def versions(own: OwnDep) -> PriorList:
    """Return every version, the active one and its labels, and what was active before."""
    found = await asyncio.to_thread(own.priors.versions)
    return PriorList(
        active=found.active,
        pinned=found.pinned,
        versions=[
            PriorSummary.model_validate(
                _summary(manifest) | {"labels": found.labels if manifest["version"] == found.active else ()}
            )
            for manifest in found.manifests
        ],
        activations=[Activation(**asdict(one)) for one in found.activations],
    )


@router.get(
    "/compare",
    responses=refusals(404, 409),
)
async def compare(own: OwnDep, a: str, b: str) -> PriorComparison:
    """Return two versions side by side: rows of both or one, regions, latents, and evidence by now."""
    for name, version in (("a", a), ("b", b)):
        if not _VERSION.fullmatch(version):
            raise _unknown(version, name)
    try:
        found = await asyncio.to_thread(own.priors.compare, a, b)
    except UnknownVersionError as error:
        raise NotFoundError(f"{error}; GET /v1/priors lists them", "version") from None
    clusters = [
        ClusterMatch(
            a=match.a.id if match.a else None,
            b=match.b.id if match.b else None,
            same=match.same,
            key_cosine=match.key_cosine,
            a_covered=match.a_covered,
            b_covered=match.b_covered,
            latent_cosine=match.latent_cosine,
            latent_distance=match.latent_distance,
            a_evidence=_evidence(found.now, match.a.id if match.a else None),
            b_evidence=_evidence(found.now, match.b.id if match.b else None),
        )
        for match in found.matches
    ]
    both = {one.a for one in clusters if one.same}
    rows = RowSets(
        both=[one.a for one in clusters if one.a in both and one.a],
        only_a=[one.a for one in clusters if one.a and one.a not in both],
        only_b=[one.b for one in clusters if one.b and one.b not in both],
    )
    return PriorComparison(a=a, b=b, rows=rows, clusters=clusters)


@router.post("/release", responses=refusals(507))
async def release(own: OwnDep) -> Active:
    """Let nights choose again what is active; until then what is active stays so."""
    await asyncio.to_thread(own.registry.release)
    return Active(active=await asyncio.to_thread(own.registry.active), pinned=False)


@router.post("/rollback", responses=refusals(409, 507))
async def rollback(own: OwnDep) -> Active:
    """Make active, and pin, what was active before; asked again, what was before that.

    Nights leave it so until it is released. Requests in flight finish on theirs.
    """
    try:
        active = await asyncio.to_thread(own.registry.roll_back)
    except (NothingBeforeError, UnknownVersionError) as error:
        raise ConflictError(str(error), "version") from None
    await own.prior.refresh()
    return Active(active=active, pinned=True)


@router.get("/{version}", response_model_exclude_unset=True, responses=refusals(404))
async def version(own: OwnDep, version: str) -> PriorRead:
    """Return one version's whole manifest, its lineage, what it learned from, and the evidence by now."""
    found = await asyncio.to_thread(own.priors.version, version) if _VERSION.fullmatch(version) else None
    if found is None:
        raise _unknown(version)
    manifest = found.manifest
    return PriorRead.model_validate(
        {
            **manifest,
            **_summary(manifest),
            "evidence": manifest.get("evidence", ()),
            "labels": found.labels,
            "episode_labels": manifest.get("labels", ()),
            "lineage": [
                {name: one.get(name) for name in ("version", "created_at", "night")} for one in found.lineage
            ],
            "trained_on": trained_on(manifest),
            "evidence_now": {row: asdict(evidence) for row, evidence in found.now.items()},
        }
    )


@router.post("/{version}/activate", responses=refusals(404, 409, 507))
async def activate(own: OwnDep, version: str) -> Active:
    """Make a version the active one, `none` for no prior; nights leave it so until it is released.

    Requests in flight finish on theirs.
    """
    wanted = None if version == "none" else version
    try:
        await asyncio.to_thread(own.registry.activate, wanted, pinned=True)
    except UnknownVersionError:
        raise _unknown(version) from None
    await own.prior.refresh()
    return Active(active=wanted, pinned=True)


def _unknown(version: str, param: str = "version") -> NotFoundError:
    return NotFoundError(f"no prior {version!r} in this space; GET /v1/priors lists them", param)


def _evidence(now: Mapping[str, Evidence], row: str | None) -> RowEvidence | None:
    found = None if row is None else now.get(row)
    return RowEvidence(**asdict(found)) if found else None


def _summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the lists of episodes and prompts, which may be thousands."""
    summary = {name: value for name, value in manifest.items() if name not in _LONG}
    evidence = [
        {name: value for name, value in found.items() if name != "differences"}
        for found in manifest.get("evidence", ())
    ]
    learned = manifest.get("labels", manifest.get("episode_ids", ()))  # an earlier build had no labels
    rows = [str(row["id"]) for row in manifest.get("rows", ())]
    return {**summary, "evidence": evidence, "episodes": len(learned), "row_ids": rows}
