"""What the gate of a night found, as a table.

Owns how the gate's part of a night's record is read: `controls`, one row per control with
`control`, `candidate`, `mean`, `difference`, `low`, `high`, `win`, and the same of decoded `answers`. Knows
nothing of how it was measured.
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
PASSES = {True: "yes", False: "no"}


def show_gate(screen: Screen, gate: Mapping[str, Any]) -> None:
    """Write the candidate's comparison with each control: likelihood, and agreement of decoded answers."""
    controls = gate.get("controls", ())
    if not controls:
        return
    headers = ("control", "candidate", "control's", "difference", "95 % interval", "passes")
    rows = [
        (*_row(row, row), PASSES.get(row.get("win"), "") or str(row.get("note") or "–")) for row in controls
    ]
    screen.table(
        headers, rows, title=f"Gate on {gate['n']} held-out episodes, log-likelihood of their answers"
    )
    decoded = [_row(row, answers) for row in controls if (answers := row.get("answers"))]
    if decoded:
        judged = max(row["answers"]["n"] for row in controls if row.get("answers"))
        screen.table(
            headers[:-1], decoded, title=f"Agreement of {judged} decoded answers with the remembered ones"
        )
    if (coverage := gate.get("coverage")) is not None:
        screen.line(f"competent for {100 * coverage:.0f} % of the held-out episodes")


def _row(row: Mapping[str, Any], measured: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        CONTROLS.get(str(row["control"]), str(row["control"])),
        number(measured.get("candidate")),
        number(measured.get("mean")),
        signed(measured.get("difference")),
        f"{signed(measured.get('low'))} … {signed(measured.get('high'))}",
    )


def number(value: object) -> str:
    """Return a measured value to four digits, a dash when there is none."""
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def signed(value: object) -> str:
    """Return a difference with its sign, a dash when there is none."""
    return f"{value:+.4f}" if isinstance(value, int | float) else "–"
