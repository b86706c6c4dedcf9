"""`latentevolve bench bounds`: whether labels or capacity limit a night, and what other methods do.

Owns its options and the tables.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bench.engine import open_engine
from bench.machine import describe
from bench.options import digest, names, numbers
from bench.result import finite
from bench.run import open_run, read_head
from cli.demonstration.tree import ISOLATED
from cli.failure import USAGE, CommandError
from cli.options import CacheDir, Json, Model, given, load_settings
from cli.progress import PhaseProgress
from cli.screen import Screen

if TYPE_CHECKING:  # torch takes a second
    from bench.stream.plan import Plan
    from config.settings import Settings


def bounds(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `bench stream`, without --url.")],
    night: Annotated[
        int | None, typer.Option("--night", min=1, help="Whose answers are learned. Default: the last one's.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Of the run, comma-separated. Default: all of it.")
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the low-rank update.")] = 8,
    passes: Annotated[
        int, typer.Option("--passes", min=1, help="Times that all but latents see each question.")
    ] = 4,
    ways: Annotated[
        str | None, typer.Option("--ways", help="What is trained, comma-separated. Default: everything.")
    ] = None,
    model: Model = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Train other things on a night's questions. Do labels or capacity limit it, do other methods do more?"""
    from bench.bounds.measure import WAYS
    from bench.stream.journal import read_rows
    from bench.stream.plan import plan_of

    screen = Screen(as_json)
    plan = plan_of(read_head(run, "stream"))
    if plan.engine == "server":
        raise CommandError(
            f"{run} is a run with a server in the loop: what that remembers is not here",
            "make a run without --url",
            USAGE,
        )
    changed = [path for path, known in zip((plan.data, *plan.also), plan.digests, strict=False)
               if digest(Path(path)) != known]  # fmt: skip
    if changed:
        raise CommandError(f"{changed[0]} is no longer what it was in the run", "put the file back", USAGE)
    last = plan.nights if night is None else night
    stage = f"night-{last}"
    rows = read_rows(run / "rows.jsonl")
    known = sorted({row["seed"] for row in rows if (row["arm"], row["stage"]) == ("night", stage)})
    wanted = known if seeds is None else [seed for seed in numbers(seeds, "--seeds") if seed in known]
    if not wanted:
        raise CommandError(f"{run} has no {stage}", "let the run finish that night first", USAGE)
    chosen = WAYS if ways is None else names(ways, "--ways", WAYS)
    overrides = plan.overrides | given(model=model or plan.model, cache_dir=cache_dir)
    folder = run / "bounds"
    options = {"rank": rank, "passes": passes, "model": overrides["model"]}
    head = open_run(folder, "bounds", options, begun=(folder / "rows.jsonl").exists())
    screen.line(describe(head))
    try:
        found = asyncio.run(_measure(screen, run, plan, overrides, wanted, stage, chosen, options))
    except KeyboardInterrupt:
        screen.note(f"stopped; the same command goes on from here ({run})")
        raise
    _show(screen, plan, head, stage, wanted, rows, found)


async def _measure(
    screen: Screen,
    run: Path,
    plan: "Plan",
    overrides: dict[str, Any],
    seeds: list[int],
    stage: str,
    ways: tuple[str, ...],
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    from bench.bounds.measure import Bounds
    from bench.stream.journal import Journal
    from bench.stream.loop import open_loop
    from bench.stream.questions import Files
    from model.transformers_engine import TransformersEngine

    files, journal = Files(plan), Journal(run / "bounds" / "rows.jsonl")
    with PhaseProgress(screen) as bars:
        async with open_engine(load_settings(**overrides), "transformers") as engine:
            for seed in seeds:
                held_out, days, scorer = files.deal(seed)
                asked = [item for day in days[: int(stage.rpartition("-")[2])] for item in day]
                further = {"data_dir": run / f"seed-{seed}", "night_seed": seed}
                settings: Settings = load_settings(**overrides | ISOLATED | further)
                async with open_loop(engine, settings, plan) as loop:
                    measurement = Bounds(
                        loop=loop,
                        engine=cast(TransformersEngine, engine),
                        journal=journal,
                        folder=run / "bounds",
                        seed=seed,
                        stage=stage,
                        ways=ways,
                        rank=options["rank"],
                        passes=options["passes"],
                        progress=bars.update,
                    )
                    await measurement.run(asked, held_out, scorer)
    return journal.rows


def _show(
    screen: Screen,
    plan: "Plan",
    head: dict[str, Any],
    stage: str,
    seeds: list[int],
    before: list[dict[str, Any]],
    found: list[dict[str, Any]],
) -> None:
    from bench.bounds.compare import comparisons
    from bench.statistics import percent
    from bench.stream.report import HEADERS, table
    from bench.stream.runner import START
    from bench.stream.summary import scores

    mine = [row for row in found if row["stage"] == stage and row["seed"] in seeds]
    beside = [row for row in before if row["stage"] in (START, stage) and row["seed"] in seeds]
    results = scores([*beside, *mine])
    screen.table(list(HEADERS), table(results), title=f"{plan.model} on {plan.data}, {stage}")
    learned = [row for row in mine if row["arm"] == "training"]
    screen.table(
        ["what", "seed", "labels", "of these right", "values trained", "forward tokens"],
        [
            [
                row.get(name, "")
                for name in ("question", "seed", "labels", "labels_right", "values", "forward")
            ]
            for row in learned
        ],
        title="What was learned from",
    )
    compared = comparisons(mine)
    if compared:
        screen.table(
            ["what differs", "questions of", "right, in points"],
            [[f"{one.what}: {one.above} − {one.below}", one.questions, percent(one.difference, sign=True)]
             for one in compared],
            title="Beside each other (95 % intervals over questions, paired)",
        )  # fmt: skip
    screen.document(finite({**head, "results": [vars(one) for one in (*results, *compared)]}))
