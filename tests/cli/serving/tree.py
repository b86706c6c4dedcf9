"""Runs a supervisor over children written in a line of Python, as a process of its own.

Run as `python -m tests.cli.serving.tree FOLDER OPTIONS_JSON`; options: `children` (name → {code,
restart, passing, limit}), `stop_s`, `first_s`. A child is ready once it has printed `ready`;
its name is then noted in `FOLDER/ready`.
"""

import json
import os
import sys
from pathlib import Path

from cli.screen import Screen
from cli.serving.board import Board
from cli.serving.child import ChildSpec, Limit
from cli.serving.claim import claim
from cli.serving.supervisor import Backoff, Supervisor


def main(folder: Path, options: dict) -> int:
    specs = [
        ChildSpec(
            name,
            (sys.executable, "-c", child["code"]),
            restart=child.get("restart", False),
            passing=child.get("passing", False),
            limit=Limit(**child["limit"], advice="Add memory.") if "limit" in child else None,
        )
        for name, child in options["children"].items()
    ]
    printed: set[str] = set()

    def is_ready(name: str) -> bool:
        if name in printed:
            printed.remove(name)
            with (folder / "ready").open("a") as notes:
                notes.write(f"{name}\n")
            return True
        return False

    with claim(folder, "http://test") as lock:
        supervisor = Supervisor(
            specs,
            Board(Screen(as_json=True), [spec.name for spec in specs]),
            folder / "logs",
            {**os.environ, "FOLDER": str(folder), "PYTHONUNBUFFERED": "1"},
            hold_fds=(lock,),
            stop_s=options.get("stop_s", 5.0),
            backoff=Backoff(first_s=options.get("first_s", 0.05), most_s=0.2, healthy_s=60.0),
            on_line=lambda name, text: printed.add(name) if text == "ready" else None,
            is_ready=is_ready,
        )
        return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
