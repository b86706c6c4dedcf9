"""What the gate of a night found, as a table.

Owns how the gate's part of a night's record is read: `controls`, one row per control with
`control`, `candidate`, `mean`, `difference`, `low`, `high` and `win`. Knows nothing of how it was
measured.
"""

from collections.abc import Mapping
from typing import Any

from cli.screen import Screen

CONTROLS = {
    "none": "no latent",
    "knn": "recall alone",
    "mean": "mean latent",
    "random": "random, same norm",
    "active": "active prior",
}
WINS = {True: "yes", False: "no"}


def show_gate(screen: Screen, gate: Mapping[str, Any]) -> None:
    """Write the candidate's comparison with each control, in log-probability per answer token."""
    rows = [
        (
            CONTROLS.get(str(row["control"]), row["control"]),
            number(row.get("candidate")),
            number(row.get("mean")),
            signed(row.get("difference")),
            f"{signed(row.get('low'))} … {signed(row.get('high'))}",
            WINS.get(row.get("win"), "") or str(row.get("note") or "–"),
        )
        for row in gate.get("controls", ())
    ]
    if not rows:
        return
    headers = ("control", "candidate", "control's", "difference", "95 % interval", "win")
    screen.table(
        headers, rows, title=f"Gate on {gate['n']} held-out episodes, log-probability per answer token"
    )
    if agreement := gate.get("agreement"):
        screen.line(
            f"decoded answers agree {number(agreement['candidate'])} with the remembered ones,"
            f" without latents {number(agreement['none'])}"
        )
    if (coverage := gate.get("coverage")) is not None:
        screen.line(f"competent for {100 * coverage:.0f} % of the held-out episodes")


def number(value: object) -> str:
    """Return a measured value to four digits, a dash when there is none."""
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def signed(value: object) -> str:
    """Return a difference with its sign, a dash when there is none."""
    return f"{value:+.4f}" if isinstance(value, int | float) else "–"
