"""`latentevolve bench serve`: throughput and latency of each effort beside bare vLLM.

Owns the options, the order of the parts, and the tables.
"""

import asyncio
import contextlib
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.options import numbers
from bench.result import Output, Report
from bench.serve.arms import parse_arms
from cli.demonstration.stream import EXAMPLES, read_prompts
from cli.demonstration.tree import ISOLATED
from cli.failure import CommandError
from cli.options import CacheDir, Json, Model, given, load_settings
from cli.progress import PhaseProgress
from cli.screen import Screen


def serve(
    arms: Annotated[
        str,
        typer.Option("--arms", help="Of bare, none, low, medium, high; bare must be one.", metavar="A,B,…"),
    ] = "bare,none,low,medium",
    concurrency: Annotated[
        str, typer.Option("--concurrency", help="Clients at a time.", metavar="N,N,…")
    ] = "1,4,16",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of each arm.")] = 5,
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="Requests per client and round (at least 4 a round).")
    ] = 2,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="Length of every answer.")] = 64,
    remembered: Annotated[
        int, typer.Option("--remembered", min=1, help="Episodes in memory before the server starts.")
    ] = 200,
    data: Annotated[Path, typer.Option("--data", help="JSONL file with `question` on each line.")] = EXAMPLES
    / "topics.jsonl",
    model: Model = None,
    cache_dir: CacheDir = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Compare the steered server with bare vLLM, round by round."""
    screen = Screen(as_json)
    chosen, levels = parse_arms(arms), tuple(numbers(concurrency, "--concurrency", least=1))
    texts = read_prompts(data)
    overrides = given(model=model, cache_dir=cache_dir)
    settings = load_settings(**overrides)
    from bench.serve.rounds import Plan

    plan = Plan(chosen, levels, rounds, requests, max_tokens, remembered)
    engine = ("model", "max_num_seqs", "kv_cache_gib", "enforce_eager", "vllm_args", "medium_votes")
    options = {**asdict(plan), **{name: getattr(settings, name) for name in engine}, "data": str(data)}
    report = Report(screen, "serve", options, output)
    found = _measure(screen, plan, texts, overrides)
    show(screen, found)
    report.publish(found)


def _measure(screen: Screen, plan: Any, texts: list[str], overrides: dict[str, Any]) -> dict[str, Any]:
    from bench.processes import memory
    from bench.serve.arms import questions
    from bench.serve.remembered import remember
    from bench.serve.rounds import Addresses, run
    from bench.serve.servers import bare_server, steered_server
    from bench.serve.summary import summary
    from model.engine import ModelUnavailableError
    from model.pull import resolve_model

    settings = load_settings(**overrides)
    try:
        path = resolve_model(settings.model, settings.cache_dir, screen.note)  # no part of either start
    except ModelUnavailableError as error:
        raise CommandError(str(error)) from error
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latentevolve-bench-")))
        own = load_settings(**overrides | ISOLATED | {"data_dir": folder / "data"})
        with screen.busy("remembering"):
            asyncio.run(remember(own, path, questions(texts, 0, plan.remembered)))
        screen.line("Starting bare vLLM", "bold")
        bare = stack.enter_context(bare_server(screen, overrides))
        screen.line(f"ready after {bare.ready_s:.1f} s")
        screen.line(f"Starting LatentEvolve with {plan.remembered} episodes", "bold")
        steered = stack.enter_context(steered_server(screen, folder / "data", overrides))
        screen.line(f"ready after {steered.ready_s:.1f} s")
        pids = {"bare": bare.pid, "latentevolve": steered.pid}
        before = {name: memory(pid) for name, pid in pids.items()}
        at = Addresses(bare.url, steered.url, settings.api_key)
        with PhaseProgress(screen) as progress:
            measured = run(at, plan, texts, progress.update)
            progress.finish()
        after = {name: memory(pid) for name, pid in pids.items()}
    return {
        "servers": {
            name: {
                "ready_s": round(server.ready_s, 1),
                "memory_before": before[name],
                "memory_after": after[name],
            }
            for name, server in (("bare", bare), ("latentevolve", steered))
        },
        "concurrency": {str(level): summary(by_arm) for level, by_arm in measured.items()},
    }


def show(screen: Screen, found: dict[str, Any]) -> None:
    """Show what the servers take, and a row per concurrency and arm."""
    from bench.statistics import ratio_text

    screen.table(
        ["server", "ready s", "MiB before", "MiB after"],
        [
            [
                name,
                server["ready_s"],
                server["memory_before"]["total_mib"],
                server["memory_after"]["total_mib"],
            ]
            for name, server in found["servers"].items()
        ],
        title="Servers",
    )
    rows = []
    for level, arms in found["concurrency"].items():
        for arm, figures in arms.items():
            ratios = figures.get("ratio_to_bare", {})
            rows.append(
                [
                    level,
                    arm,
                    f"{figures['tokens_per_s']:.1f}",
                    f"{figures['first_token']['median_ms']:.0f}",
                    f"{figures['first_token']['p95_ms']:.0f}",
                    f"{figures['between_tokens']['median_ms']:.1f}",
                    *(
                        ratio_text(ratios[name]) if name in ratios else ""
                        for name in ("throughput", "first_token", "between_tokens")
                    ),
                    ", ".join(f"{count} {mode}" for mode, count in figures["modes"].items()),
                ]
            )
    screen.table(
        ["clients", "arm", "tokens/s", "TTFT p50 ms", "p95 ms", "ITL ms", "tokens/s ÷ bare", "TTFT ÷ bare",
         "ITL ÷ bare", "what ran"],
        rows,
        title="Answers of equal length; ratios with 95 % intervals over rounds",
    )  # fmt: skip
