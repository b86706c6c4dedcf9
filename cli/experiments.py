"""`latentevolve experiments`: what steering is worth beside answers that are held out, and its switch.

Owns the command and the table; comparing is the gateway's.
"""

from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.gateway import Gateway
from cli.options import ApiKey, Json, Url, load_settings
from cli.screen import Screen


class Steering(StrEnum):
    """Whether requests are steered."""

    on = "on"
    off = "off"


def experiments(
    steering: Annotated[
        Steering | None,
        typer.Option("--steering", help="Turn it off, or on again; on, the experiment begins anew."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Compare steered requests with those that are held out."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        if steering is not None:
            gateway.put("/v1/experiments", {"steering": steering.value})
        body = gateway.get("/v1/experiments")
    screen.document(body)
    for experiment in body["data"]:
        show_experiment(screen, experiment)


def show_experiment(screen: Screen, experiment: dict[str, Any]) -> None:
    """Write one experiment for a person."""
    switch = experiment["switch"]
    if switch["steering"] == "off":
        by = "the evidence" if switch["cause"] == "evidence" else "an operator"
        why = f": {switch['message']}" if switch["message"] else ""
        screen.line(f"steering  off since {str(switch['at'])[:19]} by {by}{why}", "bold yellow")
        screen.line("→ `latentevolve experiments --steering on` puts it back, and begins anew")
    if not experiment["share"]:
        screen.line("held out  nobody: LATENTEVOLVE_HOLDOUT_SHARE is 0")
        return
    screen.line(f"held out  {100 * experiment['share']:g} % of users, or else prompts")
    rows = [
        (
            name,
            f"{_number(found['steered']['mean'])} of {found['steered']['n']}",
            f"{_number(found['holdout']['mean'])} of {found['holdout']['n']}",
            _number(found["difference"], "+"),
            _interval(found["interval"]),
            _evidence(found["evidence"]),
        )
        for name, found in experiment["metrics"].items()
    ]
    screen.table(("", "steered", "held out", "difference", "95 %, at any time", "evidence"), rows)


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3g}"


def _interval(bounds: list[float] | None) -> str:
    return "–" if bounds is None else f"{bounds[0]:+.3g} to {bounds[1]:+.3g}"


def _evidence(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    standing = {"serves": "does good", "retired": "harms"}.get(found["standing"], "open")
    return f"{standing}: {found['e_value']:.3g} for it, {found['e_against']:.3g} against it"
