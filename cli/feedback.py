"""`latentevolve feedback`: says what an answer was worth.

Owns the command; what becomes of it is the gateway's.
"""

from typing import Annotated

import typer

from cli.failure import USAGE, CommandError
from cli.gateway import Gateway
from cli.options import ApiKey, Json, Url, load_settings
from cli.screen import Screen


def feedback(
    inference_id: Annotated[
        str, typer.Argument(help="Id of the completion, message or response, or of its trace.", metavar="ID")
    ],
    rating: Annotated[
        float | None, typer.Option("--rating", min=0, max=1, help="How good it is: 0 wrong, 1 right.")
    ] = None,
    demonstration: Annotated[
        str | None, typer.Option("--demonstration", help="The answer that should have been given.")
    ] = None,
    comment: Annotated[str | None, typer.Option("--comment", help="A text to keep.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Say what an answer was worth. Memory learns from it, and forgets what is called wrong."""
    said = {"rating": rating, "demonstration": demonstration, "comment": comment}
    given = {name: value for name, value in said.items() if value is not None}
    if len(given) != 1:
        raise CommandError(
            "give one of --rating, --demonstration and --comment",
            f"latentevolve feedback {inference_id} --rating 1",
            USAGE,
        )
    screen = Screen(as_json)
    [(metric, value)] = given.items()
    body = {"inference_id": inference_id, "metric_name": metric, "value": value}
    with Gateway(load_settings(gateway_url=url, api_key=api_key)) as gateway:
        kept = gateway.post("/v1/feedback", body)
    screen.document(kept)
    screen.line(f"{metric} is kept as {kept['feedback_id']}")
