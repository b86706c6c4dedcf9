"""`latentevolve schedule`: shows when nights start by themselves, and changes that.

Owns the command; the schedule is the gateway's.
"""

from typing import Annotated, Any

import typer

from cli.failure import CommandError
from cli.gateway import Gateway, GatewayError
from cli.options import ApiKey, Json, Url, load_settings
from cli.screen import Screen


def schedule(
    cron: Annotated[
        str | None,
        typer.Option("--cron", help="Cron's five fields, in UTC, or `never`; `default`: the setting."),
    ] = None,
    episodes: Annotated[
        str | None,
        typer.Option("--episodes", help="New episodes that start a night, 0: never; `default`: the setting."),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Return to the settings.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show when nights start by themselves. What is given is changed, on every gateway, without a restart."""
    if reset and (cron is not None or episodes is not None):
        raise typer.BadParameter("it goes alone", param_hint="--reset")
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        if reset:
            body = gateway.delete("/v1/schedule")
        else:
            body = gateway.get("/v1/schedule")
            if cron is not None or episodes is not None:
                body = _change(gateway, body["chosen"], cron, episodes)
    screen.document(body)
    _show(screen, body)


def _change(
    gateway: Gateway, chosen: dict[str, Any], cron: str | None, episodes: str | None
) -> dict[str, Any]:
    wanted = dict(chosen)
    if cron is not None:
        wanted["cron"] = None if cron == "default" else cron
    if episodes is not None:
        if not episodes.isdecimal() and episodes != "default":
            raise typer.BadParameter("a number, or `default`", param_hint="--episodes")
        wanted["episodes"] = None if episodes == "default" else int(episodes)
    try:
        return gateway.put("/v1/schedule", wanted)
    except GatewayError as error:
        if error.status == 400:
            raise CommandError(error.message, "such as `latentevolve schedule --cron '0 3 * * *'`") from error
        raise


def _show(screen: Screen, body: dict[str, Any]) -> None:
    def source(name: str) -> str:
        return (
            "the setting"
            if body["chosen"][name] is None
            else f"chosen; the setting: {body['settings'][name]}"
        )

    screen.line(f"cron          {body['cron']} ({source('cron')}), in UTC")
    screen.line(f"next run      {_time(body['next_run'])}")
    count = f"every {body['episodes']} new" if body["episodes"] else "never"
    screen.line(f"episodes      {count} ({source('episodes')}); new by now: {body['new_episodes']}")
    screen.line(f"at least      {body['min_episodes']} episodes, or the night is skipped")
    for due in body["due"]:
        screen.line(f"due           by {due['trigger']} since {_time(due['at'])}", "yellow")
    if body["erasure"] and body["erasure"] not in body["due"]:
        screen.line(
            f"after erasure {_time(body['erasure']['at'])}: the active prior learned from what was erased",
            "yellow",
        )
    if body["running"]:
        screen.line(f"open          {body['running']}")
    last = body["last_run"]
    if last:
        ended = f"{last['state']} at {_time(last['finished_at'])} by {last['trigger']}"
        screen.line(f"last          {ended}: {last['id']}")


def _time(text: str | None) -> str:
    return "–" if text is None else text[:19].replace("T", " ")
