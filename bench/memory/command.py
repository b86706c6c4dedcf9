"""`latentevolve bench memory`: recall latency and insert rate of the embedded store.

Owns the options, the folder and the table.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.options import numbers
from bench.result import Output, Report
from cli.failure import USAGE, CommandError
from cli.options import Json, load_settings
from cli.progress import PhaseProgress
from cli.screen import Screen

SPACE = "bench"
BYTES_PER_EPISODE = 40 * 1024
"""What an episode of 16 × 576 takes on disk: 30 KiB of many, more only of a few."""


def memory(
    sizes: Annotated[
        str, typer.Option("--sizes", help="Episodes to measure at, rising.", metavar="N,N,…")
    ] = "1000,10000,100000",
    queries: Annotated[int, typer.Option("--queries", min=1, help="Timed recalls at each size.")] = 500,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Episodes per insert.")] = 64,
    hidden_size: Annotated[int, typer.Option("--hidden-size", min=8, help="d, length of a key.")] = 576,
    length: Annotated[int, typer.Option("--length", min=1, help="L, vectors per latent.")] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of episodes and queries.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where the store grows; it is removed afterwards.", metavar="DIR"),
    ] = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Time recall and insertion of the embedded store as it grows."""
    screen = Screen(as_json)
    wanted = numbers(sizes, "--sizes", least=1, rising=True)
    from bench.memory.growth import Plan, grow
    from bench.memory.workload import Workload
    from memory.edge_store import EdgeStore
    from memory.prior import DEFAULT_RECALL_FLOOR

    settings = load_settings(memory_url="")
    floor = DEFAULT_RECALL_FLOOR if settings.recall_floor is None else settings.recall_floor
    plan = Plan(wanted, queries, batch, settings.recall_k, floor)
    options = {**asdict(plan), "hidden_size": hidden_size, "length": length, "seed": seed}
    report = Report(screen, "memory", options, output)
    with own_folder(folder, wanted[-1]) as data_dir, PhaseProgress(screen) as progress:
        rows = grow(
            lambda: EdgeStore(data_dir / SPACE, space=SPACE, length=length, hidden_size=hidden_size),
            data_dir,
            Workload(SPACE, hidden_size, length, seed),
            plan,
            progress.update,
        )
        progress.finish()
    show(screen, rows)
    report.publish({"sizes": rows})


@contextlib.contextmanager
def own_folder(parent: Path | None, episodes: int) -> Iterator[Path]:
    """Yield a new folder, in `parent` or among the temporary ones, and remove it.

    Raises:
        CommandError: it cannot be made, or has no room for so many episodes.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="latentevolve-bench-", dir=parent)
    except OSError as error:
        raise CommandError(f"cannot make a folder: {error}", "choose another with --folder", USAGE) from error
    with made as name:
        free = shutil.disk_usage(name).free
        if free < episodes * BYTES_PER_EPISODE:
            raise CommandError(
                f"{episodes} episodes need up to {episodes * BYTES_PER_EPISODE >> 30} GiB,"
                f" {free >> 30} GiB are free in {Path(name).parent}",
                "choose another folder with --folder, or smaller --sizes",
            )
        yield Path(name)


def show(screen: Screen, rows: list[dict[str, Any]]) -> None:
    """Show two rows per size."""
    screen.table(
        ["episodes", "inserts/s", "graph s", "open s", "recall", "p50 / p95 / p99 ms", "scan",
         "p95 of scan's", "found", "exact", "disk MiB", "process MiB"],
        [
            [
                row["episodes"],
                f"{row['insert_per_s']:.0f}",
                f"{row['indexing_s']:.1f}",
                f"{row['open_s']:.1f}",
                kind,
                _times(row[kind]),
                _times(row[kind]["scan"]),
                f"{row[kind]['p95_of_scan']:.2f}",
                f"{row[kind]['recalled_mean']:.1f}",
                "–" if row[kind]["exact"] is None else f"{row[kind]['exact']:.1%}",
                row["disk_mib"],
                row["process_mib"],
            ]
            for row in rows
            for kind in ("grown", "reopened")
        ],
        title="Recall and insertion of the embedded store, beside numpy's scan of the same keys",
    )  # fmt: skip


def _times(found: dict[str, float]) -> str:
    return f"{found['median_ms']:.2f} / {found['p95_ms']:.2f} / {found['p99_ms']:.2f}"
