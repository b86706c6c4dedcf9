"""`latentevolve bench step`: one optimisation step, ours and LatentSeek's, on one model in one process.

Owns the options and the table.
"""

from typing import Annotated, Any, Literal

import typer

from bench.result import Output, Report
from bench.step import QUESTION
from cli.failure import USAGE, CommandError
from cli.options import CacheDir, Json, Model, load_settings
from cli.progress import PhaseProgress
from cli.screen import Screen


def step(
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", min=10, help="Length of every answer.")
    ] = 256,
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Steps of each method.")] = 5,
    population: Annotated[
        int | None,
        typer.Option("--population", min=2, help="Our candidates or rollouts per step; even."),
    ] = None,
    question: Annotated[str, typer.Option("--question", help="What is asked.")] = QUESTION,
    device: Annotated[str, typer.Option("--device", help="Where all of it runs, such as cuda.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option("--dtype", help="What all of it computes in.")
    ] = "float32",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of torch; 1 where other work would hold it up.")
    ] = None,
    model: Model = None,
    cache_dir: CacheDir = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Time a step of our searches against one of LatentSeek's."""
    screen = Screen(as_json)
    settings = load_settings(model=model, cache_dir=cache_dir, population=population)
    options = {
        "model": settings.model,
        "answer_tokens": answer_tokens,
        "repetitions": repetitions,
        "population": settings.population,
        "latent_length": settings.latent_length,
        "question": question,
        "device": device,
        "dtype": dtype,
    }
    report = Report(screen, "step", options, output)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    from bench.step.compare import compare, summary
    from model.engine import ModelUnavailableError, PromptTooLongError
    from model.pull import resolve_model
    from model.transformers_engine import TransformersEngine

    try:
        path = resolve_model(settings.model, settings.cache_dir, screen.note)
        engine = TransformersEngine(
            path,
            length=settings.latent_length,
            placement=settings.placement,
            dtype=getattr(torch, dtype),
            device=device,
        )
        with PhaseProgress(screen) as progress:
            steps = compare(
                engine, question, answer_tokens, settings.population, repetitions, progress.update
            )
            progress.finish()
    except ModelUnavailableError as error:
        raise CommandError(str(error)) from error
    except PromptTooLongError as error:
        raise CommandError(str(error), "choose a smaller --answer-tokens", USAGE) from error
    results = summary(steps)
    show(screen, results)
    report.publish({**results, "threads": torch.get_num_threads()})


def show(screen: Screen, results: dict[str, Any]) -> None:
    """Show a row per method."""
    from bench.statistics import ratio_text

    rows = []
    for name, found in results["methods"].items():
        faster = [found.get(f"times_faster_per_{unit}") for unit in ("step", "answer")]
        rows.append(
            [
                name,
                found["answers_per_step"],
                f"{found['seconds_median']:.2f}",
                f"{found['seconds_per_answer_median']:.2f}",
                *("1" if each is None else ratio_text(each) for each in faster),
            ]
        )
    screen.table(
        ["step of", "answers decoded", "s per step", "s per answer", "× faster per step", "× per answer"],
        rows,
        title=f"One optimisation step, answers of {results['answer_tokens']} tokens (rewards cost 0)",
    )
