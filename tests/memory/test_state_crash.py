"""What the state keeps when processes that write are killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import select

from config.settings import Settings
from memory.night import NightLog
from memory.schema import outcomes, traces
from memory.state import State
from tests.memory.state_victim import latent

VICTIM = Path(__file__).with_name("state_victim.py")
ROOT = Path(__file__).parents[2]


def run_victim(*arguments: object) -> list[str]:
    """Have processes killed and return the lines that they have written."""
    ran = subprocess.run(
        [sys.executable, VICTIM, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_half_done(state_url: str) -> None:
    acknowledged = [line.split() for line in run_victim("write", state_url)]
    assert {kind for kind, *_ in acknowledged} == {"outcomes", "trace", "night", "ended"}
    with State(state_url) as state:
        with state.read() as connection:
            noted = list(connection.scalars(select(outcomes.c.prompt).order_by(outcomes.c.number)))
        assert noted == [f"{prompt[:-1]}{which}" for prompt in noted[::2] for which in "ab"], "both or none"
        log = NightLog(state)
        for kind, number, *rest in acknowledged:
            if kind == "outcomes":
                assert f"{number}a" in noted
            elif kind == "trace":
                written = {"number": int(number)}, latent(int(number))
                assert state.trace(f"trace-{number}", latent=True) == written
            else:
                night = log.get(rest[0])
                assert night is not None
                assert night.space == f"space-{number}"
                assert kind == "night" or (night.state, night.message) == ("refused", f"night {number}")


def test_a_take_over_that_was_killed_is_finished_by_the_next_start(tmp_path: Path, state_url: str) -> None:
    folder = tmp_path / "data"
    (folder / "traces").mkdir(parents=True)
    names = [f"{number:08}-0000-4000-8000-000000000000" for number in range(250)]
    for age, name in enumerate(names):
        file = folder / "traces" / f"{name}.json"
        file.write_text(json.dumps({"id": name, "latent": None}))
        os.utime(file, (age, age))
    url = state_url if state_url.startswith("postgresql") else "none"
    run_victim("take-over", folder, url)
    settings = Settings(data_dir=folder, state_url=url, _env_file=None)
    with State.open(settings) as state, state.read() as connection:
        assert list(connection.scalars(select(traces.c.id).order_by(traces.c.number))) == names
    assert [path.name for path in folder.iterdir() if not path.name.startswith("state.db")] == []
