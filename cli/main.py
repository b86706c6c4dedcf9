"""The `latentevolve` command.

Owns the list of commands and the way from an error to a message and an exit code. Each command
is a module of its own, imported here and nowhere else, but for groups of other packages (cli/groups.py).
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from cli import ask, demo, experiments, feedback, keys, memory, night, priors, pull, schedule, serve, stats
from cli.failure import INTERRUPTED, CommandError
from cli.groups import OpenGroup
from cli.screen import console, write

app = typer.Typer(
    name="latentevolve",
    cls=OpenGroup,
    help="An OpenAI-compatible server that gets better at its own workload.",
    no_args_is_help=True,
    rich_markup_mode=None,  # help and usage errors are plain lines, also in a pipe
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("pull")(pull.pull)
app.command("ask")(ask.ask)
app.command("feedback")(feedback.feedback)
app.add_typer(night.app, name="night")
app.command("schedule")(schedule.schedule)
app.command("experiments")(experiments.experiments)
app.add_typer(priors.app, name="priors")
app.command("stats")(stats.stats)
app.add_typer(memory.app, name="memory")
app.add_typer(keys.app, name="keys")
app.command("demo")(demo.demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            print(version("latentevolve"))
        except PackageNotFoundError:
            print("not installed")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """An OpenAI-compatible server that gets better at its own workload."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; `arguments` default to the process's."""
    try:
        app(args=arguments, prog_name="latentevolve")
    except CommandError as error:
        stderr = console(sys.stderr)
        write(stderr, f"Error: {error.message}", "bold red")
        if error.hint:
            write(stderr, f"→ {error.hint}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has gone, as in `latentevolve stats | head -1`; Python's exit would complain too.
        sys.stderr.close()
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
