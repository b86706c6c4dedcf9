"""`latentevolve night`: runs a consolidation now and shows what the evidence says; lists and cancels them.

Owns starting, following and ending a night over HTTP. The night itself belongs to the worker: what ends
here is the watching.
"""

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cli.evidence import show_evidence
from cli.failure import FAILED, INTERRUPTED, REFUSED, CommandError
from cli.gateway import PAGE, Gateway, GatewayError
from cli.options import ApiKey, Json, Url, load_settings
from cli.progress import PhaseProgress
from cli.screen import Screen
from config.settings import START_NIGHT_TIMEOUT_S

ENDED = {"promoted", "on trial", "refused", "skipped", "failed", "cancelled"}
EXIT_CODES = {
    "promoted": 0,
    "on trial": 0,
    "skipped": 0,
    "refused": REFUSED,
    "failed": FAILED,
    "cancelled": FAILED,
}
QUIET_S = 30.0
"""A night that waits in the queue for so long probably has no worker."""
SWAP_S = 30.0

app = typer.Typer(invoke_without_command=True)


@app.callback()
def night(
    context: typer.Context,
    follow: Annotated[
        str | None, typer.Option("--follow", help="Follow this night instead of starting one.", metavar="ID")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the night to its end.")] = True,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Consolidate the remembered episodes. Exit code 3: what it learned is worse than what is served."""
    if context.invoked_subcommand is not None:
        return
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        record = gateway.get(f"/v1/consolidations/{follow}") if follow else start_night(gateway)
        if wait:
            record = _followed(gateway, record, screen)
    screen.document(record)
    show_night(screen, record)
    raise typer.Exit(EXIT_CODES.get(str(record["state"]), 0))


@app.command("list")
def list_nights(
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most nights that are shown.")] = 20,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List nights, the newest first."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        records, more = gateway.listed("/v1/consolidations", limit)
    screen.document({"data": records})
    if not records:
        screen.line("no nights yet: `latentevolve night` runs one")
        return
    rows = [
        (
            record["id"],
            str(record.get("created_at") or "–")[:19],
            record["trigger"],
            record["state"] if record["state"] in ENDED else f"{record['state']}: {record['phase']}",
            record["episodes"],
            record.get("version") or "–",
            str(record.get("error") or record.get("message") or "").replace("\n", " ")[:60],
        )
        for record in records
    ]
    screen.table(("night", "asked for", "by", "state", "episodes", "version", "says"), rows)
    if more:
        screen.note("there are older ones: see --limit")


@app.command("cancel")
def cancel(
    night_id: Annotated[
        str | None, typer.Argument(help="Left out: the one that is queued or running.", metavar="ID")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """End a night that is queued or running. Nothing is published, and its worker stops within seconds."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        meant = night_id or _running(gateway)
        if meant is None:
            raise CommandError(
                "no night is queued or running", "`latentevolve night list` shows those that ended"
            )
        record = gateway.post(f"/v1/consolidations/{meant}/cancel")
    screen.document(record)
    screen.line(f"night {record['id']} is cancelled", "green")


def start_night(gateway: Gateway) -> dict[str, Any]:
    """Ask for a night and return its record.

    Raises:
        CommandError: one is under way, or the queue cannot be reached.
    """
    try:
        return gateway.post("/v1/consolidations", {"trigger": "cli"}, timeout_s=START_NIGHT_TIMEOUT_S)
    except GatewayError as error:
        if error.status == 409:
            running = _running(gateway)
            error.hint = f"follow it with `latentevolve night --follow {running}`" if running else None
        elif error.status == 503:
            error.hint = "`latentevolve serve` runs queue and worker; with Redis, see LATENTEVOLVE_BROKER_URL"
        raise


def follow_night(
    gateway: Gateway,
    record: dict[str, Any],
    on_change: Callable[[dict[str, Any]], None],
    again_after_s: float = 0.5,
) -> dict[str, Any]:
    """Watch a night until it has ended, telling `on_change` each record, and return the last one."""
    failures = 0
    on_change(record)
    while record["state"] not in ENDED:
        try:
            for news in gateway.events(f"/v1/consolidations/{record['id']}/events"):
                record, failures = news or record, 0
                on_change(record)
        except CommandError:
            failures += 1
            if failures >= 10:  # training takes all cores: one late answer means nothing
                raise
        if record["state"] not in ENDED:
            time.sleep(again_after_s)
    return record


def wait_until_served(gateway: Gateway, record: dict[str, Any]) -> None:
    """Wait until the gateway has taken up what a night has published, for `SWAP_S` at most."""
    deadline = time.monotonic() + SWAP_S
    while record.get("version") and time.monotonic() < deadline:
        if (gateway.get("/v1/memory/stats").get("prior") or {}).get("version") == record["version"]:
            return
        time.sleep(0.2)


class NightProgress:
    """Shows the records of one night as bars or lines."""

    def __init__(self, screen: Screen, progress: PhaseProgress) -> None:
        self._screen = screen
        self._progress = progress
        self._since = time.monotonic()
        self._warned = False

    def show(self, record: dict[str, Any]) -> None:
        """Show where the night is."""
        if record["state"] == "queued":
            self._progress.update("queued", 0, 0)
            if not self._warned and time.monotonic() - self._since > QUIET_S:
                self._warned = True
                self._screen.note("no worker has taken the night yet: is one running?", "yellow")
        elif record["state"] == "running":
            self._progress.update(
                str(record["phase"]),
                int(record.get("done") or 0),
                int(record.get("total") or 0),
                str(record.get("message") or ""),
            )
        elif record["state"] in {"promoted", "on trial", "refused"}:
            self._progress.finish()


def show_night(screen: Screen, record: dict[str, Any]) -> None:
    """Write what came of a night: the table of its evidence and what follows."""
    state, version = record["state"], record.get("version")
    show_evidence(screen, (record.get("evidence") or {}).get("clusters") or (), version)
    reason = record.get("message") or ""
    match state:
        case "promoted":
            screen.line(
                f"promoted: {version} is active and serves (before: {record.get('parent') or 'none'})",
                "bold green",
            )
        case "on trial":
            screen.line(
                f"on trial: {version} is measured by day, and serves as soon as that proves it", "bold"
            )
        case "refused":
            screen.line(f"refused: {version} is proven worse than what is served", "bold yellow")
        case "skipped":
            screen.line("skipped: nothing was trained", "yellow")
        case "cancelled":
            screen.line("cancelled: nothing was published", "yellow")
        case "failed":
            screen.line(f"failed: {record.get('error') or 'no reason given'}", "bold red")
            screen.line("→ see DATA_DIR/logs/worker.log; a failed night can be started again")
        case _:
            screen.line(f"night {record['id']} is {state}; follow it with --follow {record['id']}")
    if reason and state != "failed":
        screen.line(str(reason))


def _followed(gateway: Gateway, record: dict[str, Any], screen: Screen) -> dict[str, Any]:
    screen.line(f"night {record['id']}: {record.get('episodes') or 'no'} episodes")
    try:
        with PhaseProgress(screen) as progress:
            return follow_night(gateway, record, NightProgress(screen, progress).show)
    except KeyboardInterrupt:
        screen.note("no longer watching; the night itself goes on", "yellow")
        screen.note(f"→ follow it again with `latentevolve night --follow {record['id']}`")
        raise typer.Exit(INTERRUPTED) from None


def _running(gateway: Gateway) -> str | None:
    records, _ = gateway.listed("/v1/consolidations", PAGE)
    for record in records:
        if record["state"] not in ENDED:
            return str(record["id"])
    return None
