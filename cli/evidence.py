"""What the evidence says of a night's new latents, as a table.

Owns how `clusters` of a night's evidence are read: one entry per row of the prior, with `n`, `mean`,
`e_value`, `standing` and mean outcomes. Knows nothing of how they were measured (docs/evidence.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cli.screen import Screen


def show_evidence(screen: Screen, clusters: Sequence[Mapping[str, Any]], version: str | None = None) -> None:
    """Write one line per new latent: its answers beside those that are served now, and where it stands."""
    if not clusters:
        return
    headers = ("latent", "learned from", "judged by", "agree", "as served", "random", "evidence", "stands")
    rows = [
        (
            f"{version}/{found['row']}" if version else str(found["row"]),
            f"{found['examples']} like {str(found.get('like', ''))[:24]!r}",
            f"{found['n']} prompts",
            percent(found.get("candidate")),
            percent(found.get("baseline")),
            percent(found.get("random")),
            proof(found),
            str(found["standing"]),
        )
        for found in clusters
    ]
    screen.table(headers, rows, title="Answers that agree with the labels, on prompts not learned from")


def proof(found: Mapping[str, Any]) -> str:
    """Return the e-value that speaks loudest: for the latent, or with a minus against it."""
    for_it, against = float(found.get("e_value") or 1.0), float(found.get("e_against") or 1.0)
    return f"{for_it:.3g}" if for_it >= against else f"-{against:.3g}"


def percent(value: object) -> str:
    """Return a share in percent, a dash when there is none."""
    return f"{100 * value:.0f} %" if isinstance(value, int | float) else "–"
