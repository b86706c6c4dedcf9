"""Groups of commands that other packages bring, such as `bench`.

Owns their loading: each comes in through an entry point `latentevolve.commands` that names a Typer app, and
is imported when it, or the list of all commands, is asked for. One that cannot be imported costs the others
nothing. Knows nothing of what the groups do.
"""

import sys
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from cli.failure import CommandError
from cli.screen import console, write

ENTRY_POINTS = "latentevolve.commands"


class OpenGroup(TyperGroup):
    """The commands of this package, then the groups of others; names of this package win."""

    @cached_property
    def _found(self) -> Mapping[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, but of groups that cannot be imported; those are warned of."""
        names = super().list_commands(ctx)
        for name in sorted(set(self._found) - set(names)):
            try:
                self.get_command(ctx, name)
            except CommandError as error:
                write(console(sys.stderr), f"Warning: {error.message}", "yellow")
            else:
                names.append(name)
        return names

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, None when there is none of that name.

        Raises:
            CommandError: it is a group that cannot be imported.
        """
        if cmd_name not in self.commands and cmd_name in self._found:
            self.add_command(_group(self._found[cmd_name]), cmd_name)
        return super().get_command(ctx, cmd_name)


def _group(entry: EntryPoint) -> Any:
    holder = typer.Typer(rich_markup_mode=None)
    try:
        holder.add_typer(entry.load(), name=entry.name)
        return get_group(holder).commands[entry.name]
    except Exception as error:  # whatever the import of another package raises
        message = f"the command {entry.name} cannot be loaded: {type(error).__name__}: {error}"
        raise CommandError(message, f"reinstall what brings {entry.value}") from error
