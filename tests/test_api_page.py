"""docs/api.md says what the server says."""

import re
from pathlib import Path
from typing import get_args

from server.api.errors import ANTHROPIC_PATHS
from server.api.options import REASONING_EFFORTS, STEERED_PATHS, LatentObject
from server.api.scopes import PUBLIC
from server.api.steered import HEADERS
from server.steering.search.result import Stopped

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text()
CODED = set(re.findall(r"`([^`\n]+)`", PAGE))

SPOKEN = {
    "server/steering/pipeline.py": r'noting\(f?"([a-z-]+)|return f?"([a-z-]+)|else "(no-room)"'
    r'|"(improved|agreed)"|plain\("([a-z-]+)"',
    "server/steering/start.py": r'"((?:memory|recall|nothing|store|prior)[a-z]*-[a-z-]+|recalled)"',
    "server/steering/request.py": r'"(several-[a-z-]+)"',
    "server/steering/outcome.py": r'reason = "([a-z-]+)"|return "([a-z-]+)"$',
    "server/steering/active_prior.py": r': "(prior-[a-z-]+)"',
    "server/api/steered.py": r'reason="([a-z-]+)"',
    "server/engine/injection.py": r'Outcome\("plain", "([a-z-]+)"|return "([a-z-]+)"$',
}
"""How reasons are spelt, by file."""


def reasons() -> set[str]:
    found = set()
    for file, pattern in SPOKEN.items():
        hits = re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)
        here = {part for hit in hits for part in ([hit] if isinstance(hit, str) else hit) if part}
        assert here, file
        found |= here
    return found


def test_every_reason_is_listed() -> None:
    table = PAGE.split("## Reasons")[1].split("\n## ")[0]
    listed = {name.partition(":")[0] for name in re.findall(r"`([^`\n]+)`", table)}
    known = {"recall-retired", "prior-on-trial", "prior-covers", "improved", "several-prompts", "not-ready"}
    known |= {
        "no-room",
        "effort-none",
        "self-check-failed",
        "search-failed",
        "engine-error",
        "latent-refused",
        "holdout",
        "steering-off",
    }
    assert known <= reasons()
    assert reasons() - listed == set()


def test_every_early_end_is_listed() -> None:
    early = set(get_args(Stopped)) - {"steps", "perfect", "plateau"}
    assert {f"-until-{stopped}" for stopped in early} <= CODED


def test_every_open_route_is_listed() -> None:
    section = PAGE.split("## API keys")[1].split("\n## ")[0]
    assert set(re.findall(r"`(/\w+)`", section)) == PUBLIC


def test_every_option_and_effort_is_listed() -> None:
    assert set(LatentObject.model_fields) <= CODED
    assert set(REASONING_EFFORTS) <= CODED


def test_every_steered_route_header_and_anthropic_route_is_listed() -> None:
    assert CODED >= STEERED_PATHS
    assert set(HEADERS) <= CODED
    assert CODED >= ANTHROPIC_PATHS
