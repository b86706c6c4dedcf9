"""Runs a supervisor over children written in a line of Python, as a process of its own.

Run as `python -m tests.cli.serving.tree FOLDER OPTIONS_JSON`; options: `children` (name → {code,
restart, passing}), `stop_s`, `first_s`.
"""

import json
import os
import sys
from pathlib import Path

from cli.screen import Screen
from cli.serving.board import Board
from cli.serving.child import ChildSpec
from cli.serving.claim import claim
from cli.serving.supervisor import Backoff, Supervisor


def main(folder: Path, options: dict) -> int:
    specs = [
        ChildSpec(
            name,
            (sys.executable, "-c", child["code"]),
            restart=child.get("restart", False),
            passing=child.get("passing", False),
        )
        for name, child in options["children"].items()
    ]
    with claim(folder, "http://test") as lock:
        supervisor = Supervisor(
            specs,
            Board(Screen(as_json=True), [spec.name for spec in specs]),
            folder / "logs",
            {**os.environ, "FOLDER": str(folder), "PYTHONUNBUFFERED": "1"},
            hold_fds=(lock,),
            stop_s=options.get("stop_s", 5.0),
            backoff=Backoff(first_s=options.get("first_s", 0.05), most_s=0.2, healthy_s=60.0),
        )
        return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
