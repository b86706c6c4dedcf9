"""`latentevolve bench rewards`: how well each reward signal tells right from wrong, against labels.

Owns its options and how its parts are put together.
"""

import asyncio
import random
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.engine import EngineKind, open_engine
from bench.options import (
    TOPICS,
    Data,
    EngineName,
    Instruction,
    MaxTokens,
    SettingPairs,
    System,
    digest,
    of_results,
    pairs,
    settings_at_default,
)
from bench.result import Output, Report
from bench.run import open_run
from cli.demonstration.stream import Item, read_items
from cli.failure import USAGE, CommandError
from cli.options import CacheDir, Json, Model, given, load_settings
from cli.progress import PhaseProgress
from cli.screen import Screen
from config.settings import Settings

ROWS = "rows.jsonl"


def rewards(
    data: Data = TOPICS,
    engine: EngineName = "transformers",
    max_tokens: MaxTokens = 64,
    instruction: Instruction = "",
    system: System = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Questions, drawn with the seed.")] = 48,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Samples of each, beside greedy.")] = 8,
    signals: Annotated[
        str,
        typer.Option("--signals", help="Signals, comma-separated; those of the setting rewards come too."),
    ] = "consistency,confidence,format",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw and the samples.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="For rows and pictures; a run that was stopped goes on from there."),
    ] = None,
    setting: SettingPairs = None,
    model: Model = None,
    cache_dir: CacheDir = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure how well each reward signal tells right from wrong."""
    screen = Screen(as_json)
    settings = load_settings(**(given(model=model, cache_dir=cache_dir) | pairs(setting)))
    weights, names = _weights(settings, signals)
    everything = read_items(data)
    items = list({item.question: item for item in everything}.values())
    random.Random(seed).shuffle(items)
    items = items[:limit]
    if not items:
        raise CommandError(f"{data} holds no questions", "name a JSONL file with --data", USAGE)
    options = {
        "model": settings.model,
        "data": str(data),
        "data_digest": digest(data),
        "engine": engine,
        "max_tokens": max_tokens,
        "instruction": instruction,
        "system": system,
        "limit": limit,
        "samples": samples,
        "signals": names,
        "seed": seed,
        "settings": of_results(settings),
    }
    with ExitStack() as stack:
        if folder is None:
            rows = Path(stack.enter_context(tempfile.TemporaryDirectory())) / ROWS
        else:
            rows = folder / ROWS
            begun = rows.exists() and rows.stat().st_size > 0
            # Another limit draws the same questions, more or fewer of them.
            open_run(
                folder,
                "rewards",
                options,
                begun=begun,
                may_change=("limit",),
                defaults={"settings": settings_at_default()},
            )
        report = Report(screen, "rewards", options, output)
        try:
            found = asyncio.run(_measure(screen, settings, engine, options, everything, items, rows))
        except KeyboardInterrupt:
            if folder is not None:
                screen.note(f"stopped; the same command goes on from here ({folder})")
            raise
    from bench.rewards.show import draw, show
    from bench.rewards.summary import Answers, summarise
    from bench.stream.journal import builds, several

    results = summarise(found, weights, names, settings.remember_threshold) | {"builds": builds(found)}
    show(screen, results)
    if said := several(builds(found)):
        screen.note(said)
    if folder is not None:
        answers = Answers.of(found, names)
        if draw(path := folder / "reliability.png", answers, answers.quality(weights)):
            screen.note(f"picture: {path}")
    report.publish(results)


async def _measure(
    screen: Screen,
    settings: Settings,
    kind: EngineKind,
    options: dict[str, Any],
    everything: list[Item],
    items: list[Item],
    rows: Path,
) -> list[dict[str, Any]]:
    from bench.asking import scorer_of
    from bench.rewards.measure import Measurement
    from bench.stream.journal import Journal
    from bench.stream.questions import Scorer as Labels
    from model.engine import EngineError

    alike = ",".join(f"{name}=1" for name in options["signals"])
    with PhaseProgress(screen) as bars:
        async with open_engine(settings, kind) as engine:
            measurement = Measurement(
                engine=engine,
                scorer=scorer_of(settings.model_copy(update={"rewards": alike})),
                labels=Labels(everything, box="\\boxed" in options["instruction"] + options["system"]),
                journal=Journal(rows),
                count=options["samples"],
                seed=options["seed"],
                max_tokens=options["max_tokens"],
                instruction=options["instruction"],
                system=options["system"],
            )
            try:
                return await measurement.run(items, bars.update)
            except EngineError as error:
                raise CommandError(f"the engine failed: {error}") from error


def _weights(settings: Settings, signals: str) -> tuple[dict[str, float], list[str]]:
    """Return the weights of Q and the names of all signals to measure.

    Raises:
        CommandError: exit code 2, a signal or weight that is none.
    """
    from server.steering.rewards.scorer import VERIFIER, RewardSettingsError, parse_weights

    wanted = [name.strip() for name in signals.split(",") if name.strip()]
    try:
        weights = parse_weights(settings.rewards)
        if wanted:
            parse_weights(",".join(f"{name}=1" for name in wanted))
    except RewardSettingsError as error:
        raise CommandError(str(error), "see --signals, and --setting rewards=…", USAGE) from error
    names = list(dict.fromkeys([*wanted, *weights]))
    if VERIFIER in names and settings.verifier_url is None:
        raise CommandError("the signal verifier has no URL", "give --setting verifier_url=…", USAGE)
    return weights, names
