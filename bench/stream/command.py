"""`latentevolve bench stream`.

Owns its options, the run's folder and the engine's life. A run that was stopped goes on when the command
is given again.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from bench.machine import describe, machine
from cli.demonstration.stream import EXAMPLES, Item, read_items, read_prompts
from cli.failure import USAGE, CommandError
from cli.options import CacheDir, Json, Model, given, load_settings
from cli.progress import PhaseProgress
from cli.screen import Screen
from config.settings import Settings
from memory.atomic import write_json

DEFAULT_ARMS = "plain,majority,random,low"


def stream(
    run: Annotated[Path, typer.Argument(help="Folder of the run; a run that was stopped goes on.")],
    data: Annotated[Path, typer.Option("--data", help="JSONL file with `question` and `answer`.")] = EXAMPLES
    / "topics.jsonl",
    also: Annotated[
        list[Path] | None, typer.Option("--also", help="JSONL file that no day draws from; repeatable.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="transformers or vllm.")] = "transformers",
    day: Annotated[int, typer.Option("--day", min=1, help="Questions per day.")] = 48,
    held_out: Annotated[int, typer.Option("--held-out", min=2, help="Questions that no day holds.")] = 64,
    nights: Annotated[int, typer.Option("--nights", min=1, help="Days, each with a night.")] = 3,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, comma-separated.")] = "0,1,2",
    arms: Annotated[str, typer.Option("--arms", help="Arms, comma-separated; `all` for all.")] = DEFAULT_ARMS,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Answer budget.")] = 64,
    instruction: Annotated[str, typer.Option("--instruction", help="Follows each question.")] = "",
    system: Annotated[str, typer.Option("--system", help="System prompt.")] = "",
    day_effort: Annotated[str, typer.Option("--day-effort", help="low (explored), medium or high.")] = "low",
    samples: Annotated[int, typer.Option("--samples", min=2, help="Of `majority` and `best-of`.")] = 8,
    refined: Annotated[int, typer.Option("--refined", min=1, help="Questions of arms that refine.")] = 16,
    unlike: Annotated[
        Path, typer.Option("--unlike", help="JSONL file of prompts unlike the stream.")
    ] = EXAMPLES / "unrelated.jsonl",
    setting: Annotated[
        list[str] | None,
        typer.Option("--setting", help="Server setting as name=value, such as recall_k=8; repeatable."),
    ] = None,
    model: Model = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Days, nights and arms on one stream: does the loop make the model better at its workload?"""
    from bench.stream.arms import ARMS
    from bench.stream.plan import Plan

    screen = Screen(as_json)
    chosen = list(ARMS) if arms == "all" else [name.strip() for name in arms.split(",") if name.strip()]
    for name in chosen:
        if name not in ARMS:
            raise CommandError(f"--arms: no arm {name!r}", f"known are {', '.join(ARMS)}", USAGE)
    if day_effort not in ("low", "medium", "high"):
        raise CommandError(f"--day-effort {day_effort}: not low, medium or high", None, USAGE)
    if engine not in ("transformers", "vllm"):
        raise CommandError(f"--engine {engine}: not transformers or vllm", None, USAGE)
    overrides = given(model=model, cache_dir=cache_dir) | _pairs(setting or [])
    settings = load_settings(**overrides)
    plan = Plan(
        model=settings.model,
        data=str(data),
        also=tuple(str(path) for path in also or []),
        engine=cast(Literal["transformers", "vllm"], engine),
        day=day,
        held_out=held_out,
        nights=nights,
        max_tokens=max_tokens,
        instruction=instruction,
        system=system,
        day_effort=cast(Literal["low", "medium", "high"], day_effort),
        samples=samples,
        refined=refined,
        settings=_pairs(setting or []),
    )
    wanted = _seeds(seeds)
    head = _open_run(run, plan)
    screen.line(describe(head))
    try:
        asyncio.run(_run(screen, run, plan, settings, wanted, chosen, head, read_prompts(unlike)))
    except KeyboardInterrupt:
        screen.note(f"stopped; the same command goes on from here ({run})")
        raise


async def _run(
    screen: Screen,
    run: Path,
    plan: Any,
    settings: Settings,
    seeds: list[int],
    arms: list[str],
    head: dict[str, Any],
    unlike: list[str],
) -> None:
    from bench.stream.journal import Journal
    from bench.stream.loop import Loop, open_loop
    from bench.stream.report import HEADERS, table, write_report
    from bench.stream.runner import Questions, Runner
    from bench.stream.score import Scorer
    from bench.stream.summary import scores

    items = read_items(Path(plan.data))
    others = [(Path(path).stem, read_items(Path(path))) for path in plan.also]
    box = "\\boxed" in plan.instruction
    journal = Journal(run / "rows.jsonl")

    def questions_of(seed: int) -> tuple[list[Questions], list[list[Item]], Scorer]:
        scorer = Scorer(items, box=box)
        held_out, days = plan.parts(items, seed)
        found = [Questions("stream", held_out, scorer)]
        for name, more in others:
            found.append(Questions(name, more[: plan.held_out], Scorer(more, box=box)))
        return found, days, scorer

    for seed in seeds:
        questions_of(seed)  # too few questions are said before the model is loaded

    with PhaseProgress(screen) as bars:
        async with _engine(settings, plan.engine) as engine:

            @asynccontextmanager
            async def opened(seed: int) -> AsyncIterator[Loop]:
                own = settings.model_copy(
                    update={
                        "data_dir": run / f"seed-{seed}",
                        "night_seed": seed,
                        "night_episodes": 0,
                        "memory_url": None,
                        "broker_url": None,
                    }
                )
                async with open_loop(engine, own, plan) as loop:
                    yield loop

            runner = Runner(
                plan=plan,
                journal=journal,
                arms=arms,
                stream=questions_of,
                unlike=unlike,
                open_loop=opened,
                progress=bars.update,
                stage_ended=lambda: write_report(run, head, journal.rows),
            )
            await runner.run(seeds)
    found = scores(journal.rows)
    screen.table(list(HEADERS), table(found), title=f"{plan.model} on {plan.data}")
    screen.line(f"report: {run / 'report.md'}")
    screen.document({**head, "results": [asdict(score) for score in found]})


@asynccontextmanager
async def _engine(settings: Settings, kind: str) -> AsyncIterator[Any]:
    """Load the model: for both engines with gradients, for the arms and nights that need them."""
    from model.pull import resolve_model

    path = resolve_model(settings.model, settings.cache_dir, lambda message: None)
    if kind == "vllm":
        from server.engine.launch import launch

        async with launch(settings, path) as launched:
            yield launched.engine
        return
    import torch

    from model.transformers_engine import TransformersEngine

    on_gpu = torch.cuda.is_available()
    engine = TransformersEngine(
        path,
        length=settings.latent_length,
        placement=settings.placement,
        max_model_len=settings.max_model_len,
        device="cuda" if on_gpu else "cpu",
        dtype=torch.bfloat16 if on_gpu else torch.float32,
    )
    try:
        yield engine
    finally:
        await engine.close()


def _open_run(run: Path, plan: Any) -> dict[str, Any]:
    """Return the head of the run, of its beginning when it goes on.

    Raises:
        CommandError: exit code 2, the folder holds a run of another plan.
    """
    path = run / "run.json"
    settings = json.loads(json.dumps(asdict(plan)))
    if path.exists():
        head: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # More nights go on from where fewer ended: they leave the earlier days as they were.
        changed = [n for n, value in settings.items() if n != "nights" and head["settings"].get(n) != value]
        if changed:
            raise CommandError(
                f"{run} holds a run with other options: {', '.join(changed)}",
                "name another folder, or give the options that this run was started with",
                USAGE,
            )
        return head
    run.mkdir(parents=True, exist_ok=True)
    head = {"benchmark": "stream", **machine(), "settings": settings}
    write_json(path, head)
    return head


def _pairs(settings: list[str]) -> dict[str, str]:
    found = {}
    for pair in settings:
        name, equals, value = pair.partition("=")
        if not equals or name not in Settings.model_fields:
            raise CommandError(f"--setting {pair}: not name=value of a setting", "see .env.example", USAGE)
        found[name] = value
    return found


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CommandError(f"--seeds {text}: not numbers", "such as --seeds 0,1,2", USAGE) from None
