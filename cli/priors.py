"""`latentevolve priors`: lists, shows and compares versions, makes one active, goes back, lets nights choose.

Owns the subcommands; the registry belongs to the gateway.
"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cli.evidence import percent, proof, show_evidence
from cli.failure import CommandError
from cli.gateway import Gateway, GatewayError
from cli.options import ApiKey, Json, Url, load_settings
from cli.screen import Screen

app = typer.Typer(help="List, show, compare and activate versions of the latent prior.", no_args_is_help=True)

PINNED = "what is active stays so until `latentevolve priors release`, whatever nights find"

Version = Annotated[str, typer.Argument(help="Such as v3.", metavar="VERSION")]


@app.command("list")
def list_versions(url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List every version, the active one marked."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        body = gateway.get("/v1/priors")
    screen.document(body)
    if not body["versions"]:
        screen.line("no versions yet: `latentevolve night` makes one")
        if body.get("pinned"):
            screen.line(PINNED, "yellow")
        return
    rows = [
        (
            "*" if entry["version"] == body["active"] else "",
            entry["version"],
            entry.get("parent") or "–",
            str(entry.get("created_at") or "–")[:19],
            entry.get("episodes", "–"),
            ", ".join(entry.get("labels") or ()) or "–",
            ", ".join(str(found["standing"]) for found in entry.get("evidence") or ()) or "–",
        )
        for entry in body["versions"]
    ]
    screen.table(("", "version", "parent", "created", "episodes", "labels", "its night said"), rows)
    if body["active"] is None:
        screen.line("none is active")
    if body.get("pinned"):
        screen.line(PINNED, "yellow")


@app.command("show")
def show(version: Version, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one version's manifest and the evidence of its night."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        manifest = _known(gateway, version, lambda: gateway.get(f"/v1/priors/{version}"))
    screen.document(manifest)
    lineage = [str(one["version"]) for one in manifest.get("lineage") or ()]
    for name, value in flat({**manifest, "lineage": " ← ".join(lineage) or version}).items():
        screen.line(f"{name:<24} {value}")
    show_evidence(screen, manifest.get("evidence") or (), version)
    now = manifest.get("evidence_now") or {}
    if now:
        rows = [
            (row, f"{found['n']} prompts", f"{found['mean']:+.2f}", proof(found), found["standing"])
            for row, found in now.items()
        ]
        screen.table(
            ("row", "judged by", "difference", "evidence", "stands"), rows, title="By now, night and day"
        )


@app.command("activate")
def activate(
    version: Annotated[str, typer.Argument(help="Such as v3; `none` for no prior.", metavar="VERSION")],
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Make a version active, also an older one, until `priors release`.

    Nights go on to publish versions, and leave it so. Requests in flight finish on theirs.
    """
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        body = _known(gateway, version, lambda: gateway.post(f"/v1/priors/{version}/activate"))
    _show_pinned(screen, body)


@app.command("rollback")
def rollback(url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Make active what was before, until `priors release`. Again: what was before that."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        body = gateway.post("/v1/priors/rollback")
    _show_pinned(screen, body)


@app.command("compare")
def compare(
    a: Annotated[str, typer.Argument(help="Such as v2.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Such as v3.", metavar="B")],
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show two versions side by side. Cluster by cluster, with what is known of their rows by now."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        body = _known(gateway, f"{a} or {b}", lambda: gateway.get("/v1/priors/compare", a=a, b=b))
    screen.document(body)
    rows = [
        (
            match["a"] or "–",
            match["b"] or "–",
            "same row" if match["same"] else _number(match["key_cosine"]),
            percent(match["a_covered"]),
            percent(match["b_covered"]),
            _number(match["latent_cosine"]),
            _number(match["latent_distance"]),
            _standing(match["a_evidence"]),
            _standing(match["b_evidence"]),
        )
        for match in body["clusters"]
    ]
    screen.table(
        (
            a,
            b,
            "keys' cosine",
            f"of {a} covered",
            f"of {b} covered",
            "latents' cosine",
            "distance",
            f"{a} by now",
            f"{b} by now",
        ),
        rows,
    )


@app.command("release")
def release(url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Let nights choose again what is active, after `priors activate`."""
    screen = Screen(as_json)
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        body = gateway.post("/v1/priors/release")
    screen.document(body)
    screen.line(f"active: {body.get('active') or 'none'}, until a night makes another one", "green")


def _show_pinned(screen: Screen, body: dict[str, Any]) -> None:
    screen.document(body)
    screen.line(f"active: {body.get('active') or 'none'}", "green")
    screen.line(PINNED)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _standing(found: dict[str, Any] | None) -> str:
    return f"{found['standing']}, {found['mean']:+.2f} on {found['n']}" if found else "–"


def flat(manifest: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a manifest as dotted names and short values; what is learned and long lists left out."""
    found: dict[str, str] = {}
    for name, value in manifest.items():
        if isinstance(value, dict) and not (not prefix and name in ("learned", "evidence_now")):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            found[prefix + name] = f"{len(value)} entries"
        elif not isinstance(value, dict):
            found[prefix + name] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return found


def _known(gateway: Gateway, version: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `call` returns; a version that does not exist is answered with those that do."""
    try:
        return call()
    except GatewayError as error:
        if error.status != 404:
            raise
        known = [str(entry["version"]) for entry in gateway.get("/v1/priors")["versions"]]
        raise CommandError(
            f"there is no prior {version}",
            f"known versions: {', '.join(known)}"
            if known
            else "there are none yet: run `latentevolve night`",
        ) from error
