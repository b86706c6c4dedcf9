"""What the gate of a night found, as a table.

Owns how the gate's part of a night's record is read: `controls`, one row per control with
`control`, `candidate`, `mean`, `difference`, `low`, `high`, `win`, and the same of decoded `answers` and
`samples`; of several kinds of task, `kinds` with the same for each. Knows nothing of how it was measured.
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
    """Write the candidate's comparison with each control, for each kind of task where it met several."""
    kinds = gate.get("kinds") or [gate]
    for number, kind in enumerate(kinds, start=1):
        _show_kind(screen, kind, f", kind {number} of {len(kinds)}" if len(kinds) > 1 else "")
    if gate.get("controls") or gate.get("kinds"):
        screen.line(f"competent for {100 * float(gate.get('coverage') or 0):.0f} % of the held-out episodes")


def _show_kind(screen: Screen, kind: Mapping[str, Any], which: str) -> None:
    """Write likelihoods, and agreement of greedy answers and of sampled ones."""
    controls = kind.get("controls", ())
    if not controls:
        return
    headers = ("control", "candidate", "control's", "difference", "95 % interval", "passes")
    rows = [
        (*_row(row, row), PASSES.get(row.get("win"), "") or str(row.get("note") or "–")) for row in controls
    ]
    screen.table(
        headers, rows, title=f"Gate on {kind['n']} held-out episodes{which}, log-likelihood of their answers"
    )
    for name, title in (
        ("answers", "Agreement of the greedy answers to {} of them with the remembered ones"),
        ("samples", "The same with sampled answers beside the greedy ones"),
    ):
        decoded = [_row(row, found) for row in controls if (found := row.get(name))]
        if decoded:
            judged = max(row[name]["n"] for row in controls if row.get(name))
            screen.table(headers[:-1], decoded, title=title.format(judged))


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
