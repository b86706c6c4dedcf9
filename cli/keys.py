"""`latentevolve keys`: makes, lists, rotates and revokes API keys.

Owns the four subcommands, and whom they ask: the gateway, or where none answers and none was named, the state
of the data folder, which a gateway that starts later reads.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import httpx
import typer

from cli.failure import USAGE, CommandError, NotThereError, each
from cli.gateway import Gateway, MissingError, http_client
from cli.options import ApiKey, DataDir, Json, Url, load_settings
from cli.screen import Screen
from config.settings import Settings

if TYPE_CHECKING:  # of all commands only these need the libraries behind it, which take a while to load
    from memory.api_keys import ApiKeys

app = typer.Typer(help="Make, list, rotate and revoke API keys.", no_args_is_help=True)

T = TypeVar("T")

KEYS = "/v1/keys"
_PROBE_S = 5.0

KeyId = Annotated[str, typer.Argument(help="As `latentevolve keys list` has it.", metavar="ID")]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What people know it by.")],
    scopes: Annotated[
        list[str],
        typer.Option(
            "--scope", help="infer, memory:read, memory:write or admin; may be given several times."
        ),
    ],
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Whose memory it works on; a new name is a new tenant.")
    ] = None,
    rate_limit: Annotated[
        str | None, typer.Option("--rate-limit", help="Most requests, such as 60/minute.")
    ] = None,
    days: Annotated[
        float | None, typer.Option("--days", min=0, max=36_500, help="Days that it works.")
    ] = None,
    data_dir: DataDir = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Make a key and show its secret, once."""
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)

    def there(gateway: Gateway) -> dict[str, Any]:
        body = {"name": name, "scopes": scopes, "tenant": tenant, "rate_limit": rate_limit}
        return gateway.post(KEYS, body | {"expires_at": expires_at.isoformat() if expires_at else None})

    def here(keys: "ApiKeys") -> dict[str, Any]:
        key, secret = keys.create(
            name, scopes, tenant=tenant or "default", rate_limit=rate_limit, expires_at=expires_at
        )
        return key.to_json() | {"secret": secret}

    _show_secret(_ask(there, here, url=url, api_key=api_key, data_dir=data_dir), as_json)


@app.command("list")
def list_keys(
    data_dir: DataDir = None, url: Url = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List keys, newest first, revoked ones included."""
    screen = Screen(as_json)
    body = _ask(
        lambda gateway: gateway.get(KEYS),
        lambda keys: {"object": "list", "data": [key.to_json() for key in keys.all()]},
        url=url,
        api_key=api_key,
        data_dir=data_dir,
    )
    screen.document(body)
    if not body["data"]:
        screen.line("there are no keys yet: `latentevolve keys create`")
        return
    screen.table(
        ("id", "name", "tenant", "scopes", "rate", "created", "expires", "state"),
        [_row(key) for key in body["data"]],
    )


@app.command("rotate")
def rotate(
    key_id: KeyId, data_dir: DataDir = None, url: Url = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """Give a key a new secret and show it, once. The old one is refused within seconds."""

    def here(keys: "ApiKeys") -> dict[str, Any]:
        key, secret = keys.rotate(key_id)
        return key.to_json() | {"secret": secret}

    made = _ask(
        lambda gateway: gateway.post(f"{KEYS}/{key_id}/rotate"),
        here,
        url=url,
        api_key=api_key,
        data_dir=data_dir,
    )
    _show_secret(made, as_json)


@app.command("revoke")
def revoke(
    key_ids: Annotated[list[str], typer.Argument(help="Keys.", metavar="ID")],
    data_dir: DataDir = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Let keys work no more: they are refused within seconds."""
    screen = Screen(as_json)
    revoked, missing = each(
        key_ids,
        lambda name: _ask(
            lambda gateway: gateway.post(f"{KEYS}/{name}/revoke"),
            lambda keys: keys.revoke(name).to_json(),
            url=url,
            api_key=api_key,
            data_dir=data_dir,
        ),
    )
    screen.document(revoked[0] if len(key_ids) == len(revoked) == 1 else revoked)
    for key in revoked:
        screen.line(f"{key['id']} ({key['name']}) is revoked", "green")
    if missing:
        raise missing


def _ask(
    there: Callable[[Gateway], T], here: "Callable[[ApiKeys], T]", *, url: str | None, **options: Any
) -> T:
    """Return what the gateway says, or where none was named and none answers, the state."""
    settings = load_settings(gateway_url=url, **options)
    if settings.gateway_url or _answers(settings):
        with Gateway(settings) as gateway:
            try:
                return there(gateway)
            except MissingError as error:
                raise _unknown(error.message) from error
    from memory.api_keys import ApiKeyRejectedError, ApiKeys, UnknownApiKeyError
    from memory.episode import LatentMemoryError
    from memory.state import State

    try:
        with State.open(settings) as state:
            return here(ApiKeys(state, state.room))
    except ApiKeyRejectedError as error:
        raise CommandError(str(error), "see `latentevolve keys create --help`", USAGE) from error
    except UnknownApiKeyError as error:
        raise _unknown(str(error)) from error
    except (LatentMemoryError, OSError) as error:
        raise CommandError(
            str(error), "choose the folder with --data-dir, or a gateway with --url"
        ) from error


def _answers(settings: Settings) -> bool:
    with http_client(settings, _PROBE_S) as client:
        try:
            client.get("/healthz")
        except httpx.ConnectError:
            return False
        except httpx.HTTPError:
            return True  # whatever it is, it will say more
    return True


def _unknown(message: str) -> NotThereError:
    return NotThereError(message, "`latentevolve keys list` shows those that there are")


def _show_secret(made: dict[str, Any], as_json: bool) -> None:
    screen = Screen(as_json)
    screen.document(made)
    screen.line(f"{made['id']} ({made['name']}) of tenant {made['tenant']}: {', '.join(made['scopes'])}")
    screen.line(made["secret"], "green")
    screen.line("it is not shown again; clients send it as their API key")


def _row(key: dict[str, Any]) -> Sequence[object]:
    return (
        key["id"],
        key["name"],
        key["tenant"],
        " ".join(key["scopes"]),
        key["rate_limit"] or "–",
        str(key["created_at"])[:10],
        str(key["expires_at"])[:10] if key["expires_at"] else "–",
        _state(key),
    )


def _state(key: dict[str, Any]) -> str:
    if key["revoked_at"]:
        return "revoked"
    expires_at = key["expires_at"]
    return "expired" if expires_at and datetime.fromisoformat(expires_at) <= datetime.now(UTC) else "works"
