"""`latentevolve bench`: the list of benchmarks.

Owns the names. The command line finds this through the entry point `latentevolve.commands`, so that
nothing imports `bench`; each benchmark is a module of its own, and heavy imports wait until it runs.
"""

import typer

from bench.bounds.command import bounds
from bench.evidence.command import evidence
from bench.memory.command import memory
from bench.rewards.command import rewards
from bench.serve.command import serve
from bench.step.command import step
from bench.stream.command import stream
from bench.sweep.command import sweep

app = typer.Typer(help="Benchmarks: what steering gains and what it costs.", no_args_is_help=True)
app.command("bounds")(bounds)
app.command("evidence")(evidence)
app.command("memory")(memory)
app.command("rewards")(rewards)
app.command("serve")(serve)
app.command("step")(step)
app.command("stream")(stream)
app.command("sweep")(sweep)
