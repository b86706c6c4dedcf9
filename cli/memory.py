"""`latentevolve memory`: lists, searches, forgets, exports and imports what is remembered.

Owns the six subcommands and the files they write; all else is the gateway's.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.failure import USAGE, CommandError, each
from cli.gateway import Gateway
from cli.options import ApiKey, Json, Url, check_folder, load_settings
from cli.screen import Screen

app = typer.Typer(help="List, search, forget, export and import what is remembered.", no_args_is_help=True)

EPISODES = "/v1/memory/episodes"
LONG_S = 3600.0
"""For what goes through all of memory."""
_PIECE = 2**20
_TEXT = 60
"""Characters of a text in a table."""

RewardMin = Annotated[float | None, typer.Option("--reward-min", min=0, max=1, help="Least reward.")]
RewardMax = Annotated[float | None, typer.Option("--reward-max", min=0, max=1, help="Highest reward.")]
FoundAt = Annotated[str | None, typer.Option("--effort", help="Effort of the request it was found at.")]
FoundBy = Annotated[str | None, typer.Option("--found-by", help="Search that it was found by.")]
Since = Annotated[str | None, typer.Option("--since", help="Created then or later, such as 2026-11-01.")]
Until = Annotated[str | None, typer.Option("--until", help="Created before.")]
Cluster = Annotated[
    str | None, typer.Option("--cluster", help="Covered by this row of the active prior.", metavar="ROW")
]


@app.command("list")
def list_episodes(
    reward_min: RewardMin = None,
    reward_max: RewardMax = None,
    effort: FoundAt = None,
    found_by: FoundBy = None,
    since: Since = None,
    until: Until = None,
    cluster: Cluster = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most episodes.")] = 20,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List episodes, newest first."""
    screen = Screen(as_json)
    where = _where(reward_min, reward_max, effort, found_by, since, until, cluster)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        found, more = gateway.listed(EPISODES, limit, **where)
    screen.document({"data": found})
    if not found:
        screen.line("nothing is remembered that fits")
        return
    screen.table(
        ("created", "reward", "effort", "by", "seen", "prompt", "answer", "id"),
        [(_day(one), *_columns(one), one["id"]) for one in found],
    )
    if more:
        screen.note("there are more: see --limit")


@app.command("search")
def search(
    text: Annotated[str | None, typer.Argument(help="A message; what is like it is looked for.")] = None,
    episode: Annotated[
        str | None, typer.Option("--id", help="An episode whose neighbours are looked for.", metavar="ID")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, max=100, help="Most episodes.")] = 10,
    floor: Annotated[float, typer.Option("--floor", min=-1, max=1, help="Least cosine.")] = -1.0,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Find episodes that are like a text, or like another episode."""
    if (text is None) == (episode is None):
        raise CommandError("give a text, or else --id", "latentevolve memory search 'sum two and two'", USAGE)
    screen = Screen(as_json)
    asked = {"text": text} if text is not None else {"id": episode}
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        body = gateway.post("/v1/memory/search", {**asked, "k": k, "floor": floor})
    screen.document(body)
    if not body["data"]:
        screen.line("nothing like it is remembered")
        return
    screen.table(
        ("cosine", "reward", "effort", "by", "seen", "prompt", "answer", "id"),
        [
            (f"{one['similarity']:.3f}", *_columns(one["episode"]), one["episode"]["id"])
            for one in body["data"]
        ],
    )


@app.command("delete")
def delete(
    ids: Annotated[list[str] | None, typer.Argument(help="Episodes.", metavar="ID")] = None,
    reward_min: RewardMin = None,
    reward_max: RewardMax = None,
    effort: FoundAt = None,
    found_by: FoundBy = None,
    since: Since = None,
    until: Until = None,
    cluster: Cluster = None,
    requests: Annotated[
        list[str] | None,
        typer.Option(
            "--request", help="What a request left, by the id of its answer or trace.", metavar="ID"
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that is remembered.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Forget episodes, or what requests left anywhere.

    Those that are named, or those that a filter names, or all.
    """
    where = _where(reward_min, reward_max, effort, found_by, since, until, cluster)
    if sum((bool(ids), bool(where), bool(requests), everything)) != 1:
        raise CommandError(
            "give ids, or filters, or --request, or --all",
            "`latentevolve memory list` takes the same filters",
            USAGE,
        )
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        if ids or requests:
            named = [f"{EPISODES}/{name}" for name in ids or ()]
            named += [f"/v1/latent/traces/{name}" for name in requests or ()]
            answers, missing = each(named, gateway.delete)
        else:
            named, missing = [EPISODES], None
            answers = [gateway.delete(EPISODES, timeout_s=LONG_S, **(where or {"all": "true"}))]
    screen.document(answers[0] if len(named) == len(answers) == 1 else answers)
    screen.line(f"{sum(one['deleted'] for one in answers)} episodes are forgotten", "green")
    priors = {prior["version"]: prior for one in answers for prior in one["priors"]}
    if priors:
        active = [version for version in priors if priors[version]["active"]]
        marked = f", of which {active[0]} is active" if active else ""
        screen.line(f"trained on them: {', '.join(priors)}{marked}", "yellow")
        screen.line("what they learned from that serves no more, unless you have pinned it: `priors release`")
        screen.line("the next `latentevolve night` learns from what is left")
    if nights := {one["night"] for one in answers if one["night"]}:
        screen.line(f"night {', '.join(nights)} is open and may learn from them", "yellow")
    if missing:
        raise missing


@app.command("compact")
def compact(url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Write the embedded store's files anew, without what was deleted. Else that is within a day."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway, screen.busy("compacting"):
        body = gateway.post("/v1/memory/compact", timeout_s=LONG_S)
    screen.document(body)
    screen.line("the files hold nothing more of it" if body["compacted"] else "nothing was deleted", "green")


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="The archive to be written.", metavar="FILE")],
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Write all that is remembered into an archive. The file, a tar, is there completely or not at all."""
    check_folder(file, "another FILE")
    if file.is_dir():
        raise CommandError(f"{file} is a folder", "name a FILE in it", USAGE)
    screen = Screen(as_json)
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway, screen.busy("exporting"):
            with unfinished.open("wb") as target:
                for piece in gateway.download("/v1/memory/export"):
                    target.write(piece)
            episodes = _episodes_of(unfinished)
        unfinished.replace(file)
    except OSError as error:
        raise CommandError(f"{file} could not be written: {error}", "choose another FILE") from error
    finally:
        unfinished.unlink(missing_ok=True)
    size = file.stat().st_size
    screen.document({"file": str(file), "episodes": episodes, "bytes": size})
    screen.line(f"{episodes} episodes, {size / 2**20:.1f} MiB, are in {file}", "green")


@app.command("import")
def import_archive(
    file: Annotated[Path, typer.Argument(help="An archive of `memory export`.", metavar="FILE")],
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Whose it is, where another tenant has handed it over.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Remember what is in an archive and not there yet. Run again, it goes on where it ended."""
    screen = Screen(as_json)
    if not file.is_file():
        raise CommandError(f"there is no file {file}", "`latentevolve memory export FILE` makes one", USAGE)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway, screen.busy("importing"):
        whose = {} if tenant is None else {"tenant": tenant}
        body = gateway.upload("/v1/memory/import", _pieces(file), timeout_s=LONG_S, **whose)
    screen.document(body)
    screen.line(
        f"{body['added']} episodes are remembered anew, {body['skipped']} were there already", "green"
    )


def _where(
    reward_min: float | None,
    reward_max: float | None,
    effort: str | None,
    found_by: str | None,
    since: str | None,
    until: str | None,
    cluster: str | None,
) -> dict[str, str]:
    """Return the filters that were given, as the API takes them."""
    given = {
        "reward_min": reward_min,
        "reward_max": reward_max,
        "effort": effort,
        "search": found_by,
        "since": since,
        "until": until,
        "cluster": cluster,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _columns(episode: dict[str, Any]) -> tuple[object, ...]:
    return (
        f"{episode['reward']:.2f}",
        episode["effort"],
        episode["search"],
        episode["seen"],
        _short(episode["prompt_text"], end=True),
        _short(episode["answer_text"]),
    )


def _day(episode: dict[str, Any]) -> str:
    return str(episode["created_at"])[:16]


def _short(text: str, *, end: bool = False) -> str:
    """Return a text on one line; of a prompt rather its end, for all begin alike."""
    line = " ".join(text.split())
    if len(line) <= _TEXT:
        return line
    return f"…{line[1 - _TEXT :]}" if end else f"{line[: _TEXT - 1]}…"


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(_PIECE):
            yield piece


def _episodes_of(file: Path) -> int:
    """Return how many episodes an archive says it has at its end.

    Raises:
        CommandError: it was cut off.
    """
    try:
        with tarfile.open(file) as tar:
            end = tar.extractfile("end.json")
            return int(json.load(end)["episodes"]) if end else 0
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise CommandError("the export was cut off; nothing is written", "export again") from error
