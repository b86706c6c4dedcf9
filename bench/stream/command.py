"""`latentevolve bench stream`.

Owns its options and how its parts are put together. A run that was stopped goes on when the command
is given again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bench.engine import open_engine
from bench.machine import describe
from bench.options import (
    TOPICS,
    Data,
    EngineName,
    Instruction,
    MaxTokens,
    SettingPairs,
    System,
    digest,
    names,
    numbers,
    of_results,
    pairs,
)
from bench.result import finite
from bench.run import open_run
from cli.demonstration.stream import EXAMPLES, read_prompts
from cli.demonstration.tree import ISOLATED
from cli.failure import USAGE, CommandError
from cli.gateway import Gateway
from cli.options import ApiKey, CacheDir, Json, Model, given, load_settings
from cli.progress import PhaseProgress
from cli.screen import Screen

if TYPE_CHECKING:  # torch takes a second
    from bench.stream.plan import Plan
    from bench.stream.questions import Files
    from bench.stream.runner import OpenServer
    from config.settings import Settings

DEFAULT_ARMS = "plain,majority,random,low"
SERVER_ARMS = "plain,low"
SET_BY_STREAM = {*ISOLATED, "data_dir", "night_seed", "explore_concurrency"}


def stream(
    run: Annotated[Path, typer.Argument(help="Folder of the run; a run that was stopped goes on.")],
    data: Data = TOPICS,
    also: Annotated[
        list[Path] | None, typer.Option("--also", help="JSONL file that no day draws from; repeatable.")
    ] = None,
    engine: EngineName = "transformers",
    day: Annotated[int, typer.Option("--day", min=1, help="Questions per day.")] = 32,
    held_out: Annotated[int, typer.Option("--held-out", min=2, help="Questions that no day holds.")] = 64,
    nights: Annotated[int, typer.Option("--nights", min=1, help="Days, each with a night.")] = 3,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, comma-separated.")] = "0,1,2",
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            help=f"Arms, comma-separated; `all` for all. Default: {DEFAULT_ARMS}; with --url {SERVER_ARMS}.",
        ),
    ] = None,
    max_tokens: MaxTokens = 64,
    instruction: Instruction = "",
    system: System = "",
    choices: Annotated[
        bool, typer.Option("--choices", help="Hold answers to the labels of their file.")
    ] = False,
    skew: Annotated[
        str, typer.Option("--skew", help="Share of one class in each day.", metavar="LABEL=SHARE")
    ] = "",
    day_effort: Annotated[
        Literal["low", "medium", "high"],
        typer.Option("--day-effort", help="Of a day's requests; at low they are explored."),
    ] = "low",
    samples: Annotated[int, typer.Option("--samples", min=2, help="Of `majority` and `best-of`.")] = 8,
    refined: Annotated[int, typer.Option("--refined", min=1, help="Questions of arms that refine.")] = 16,
    unlike: Annotated[
        Path, typer.Option("--unlike", help="JSONL file of prompts unlike the stream.")
    ] = EXAMPLES / "unrelated.jsonl",
    setting: SettingPairs = None,
    model: Model = None,
    cache_dir: CacheDir = None,
    url: Annotated[
        str | None, typer.Option("--url", help="A running server instead of one process.", metavar="URL")
    ] = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Days, nights and arms on one stream. Does the loop make the model better at its workload?"""
    from bench.stream.arms import ARMS, REQUESTS
    from bench.stream.plan import Plan, plan_at_default
    from bench.stream.questions import Files

    screen = Screen(as_json)
    known = list(ARMS if url is None else REQUESTS)
    asked = arms or (DEFAULT_ARMS if url is None else SERVER_ARMS)
    chosen = known if asked == "all" else list(names(asked, "--arms", known))
    chosen_settings = pairs(setting)
    for name in chosen_settings:
        if name in SET_BY_STREAM:
            raise CommandError(f"--setting {name}: the stream sets it itself", "leave it out", USAGE)
    overrides = given(model=model, cache_dir=cache_dir, gateway_url=url, api_key=api_key) | chosen_settings
    settings = load_settings(**overrides)
    wanted = numbers(seeds, "--seeds")
    served = settings.model
    if url is not None:
        if model is not None or setting or engine != "transformers":
            raise CommandError(
                "--url: model, engine and settings are the server's", "leave the options out", USAGE
            )
        if len(wanted) > 1 and not settings.api_key:
            raise CommandError(
                f"--seeds {seeds}: a server without keys has one memory, which is that of one seed",
                "give the operator's --api-key: each seed gets a tenant; or ask for one of --seeds",
                USAGE,
            )
        with Gateway(settings) as gateway:
            served = gateway.models()[0]
    plan = Plan(
        model=served,
        data=str(data),
        also=tuple(str(path) for path in also or []),
        engine="server" if url is not None else engine,
        day=day,
        held_out=held_out,
        nights=nights,
        max_tokens=max_tokens,
        instruction=instruction,
        system=system,
        choices=choices,
        skew=skew,
        day_effort=day_effort,
        samples=samples,
        refined=refined,
        settings={} if url is not None else of_results(settings, SET_BY_STREAM),
        arms=tuple(chosen),
        unlike=str(unlike),
        digests=tuple(digest(path) for path in (data, *(also or []), unlike)),
    )
    files, prompts = Files(plan), list(dict.fromkeys(read_prompts(unlike)))
    if "latentseek" in chosen and (plan.engine != "transformers" or files.held):
        raise CommandError(
            "--arms latentseek: needs free answers and --engine transformers", "name the others alone", USAGE
        )
    for seed in wanted:
        files.deal(seed)  # too few questions are said before there is a run of them
    # More nights go on from where fewer ended: they leave the earlier days as they were.
    begun = any(run.glob("seed-*"))
    head = open_run(
        run, "stream", asdict(plan), begun=begun, may_change=("nights",), defaults=plan_at_default()
    )
    screen.line(describe(head))
    try:
        asyncio.run(_run(screen, run, plan, files, overrides, wanted, chosen, head, prompts))
    except KeyboardInterrupt:
        screen.note(f"stopped; the same command goes on from here ({run})")
        raise


async def _run(
    screen: Screen,
    run: Path,
    plan: "Plan",
    files: "Files",
    overrides: dict[str, Any],
    seeds: list[int],
    arms: list[str],
    head: dict[str, Any],
    unlike: list[str],
) -> None:
    from bench.stream.journal import Journal, builds, several
    from bench.stream.report import HEADERS, table, write_report
    from bench.stream.runner import Runner
    from bench.stream.summary import scores

    journal = Journal(run / "rows.jsonl")
    with PhaseProgress(screen) as bars:
        async with _opener(run, plan, overrides) as open_server:
            runner = Runner(
                plan=plan,
                journal=journal,
                arms=arms,
                stream=files.deal,
                unlike=unlike,
                open_server=open_server,
                progress=bars.update,
                stage_ended=lambda: write_report(run, head, journal.rows),
            )
            await runner.run(seeds)
    found = scores(journal.rows)
    screen.table(list(HEADERS), table(found), title=f"{plan.model} on {plan.data}")
    if said := several(builds(journal.rows)):
        screen.note(said)
    screen.line(f"report: {run / 'report.md'}")
    screen.document(finite({**head, "results": [asdict(score) for score in found]}))


@asynccontextmanager
async def _opener(run: Path, plan: "Plan", overrides: dict[str, Any]) -> AsyncIterator["OpenServer"]:
    """Yield what opens the memory of a seed: on a running server, or around one engine of this process."""
    settings = load_settings(**overrides)

    def folder(seed: int) -> Path:
        return run / f"seed-{seed}"

    if plan.engine == "server":
        from bench.stream.remote import open_remote

        yield lambda seed: open_remote(settings, plan, folder(seed), seed)
        return
    from bench.stream.loop import open_loop
    from bench.stream.runner import CHUNK

    async with open_engine(settings, plan.engine) as engine:

        def own(seed: int) -> "Settings":
            # Of the questions of a chunk nobody waits for another.
            further = {"data_dir": folder(seed), "night_seed": seed, "explore_concurrency": CHUNK}
            return load_settings(**overrides | ISOLATED | further)

        yield lambda seed: open_loop(engine, own(seed), plan)
