"""Records of nights as a test wants them, whatever a log would let them become."""

from typing import Any

from sqlalchemy import update

from memory.night import NightRecord
from memory.schema import nights
from memory.state import State


def overwrite(state: State, record: NightRecord) -> None:
    """Let the night of that id have this record."""
    values: dict[str, Any] = {name: value for name, value in vars(record).items() if name != "id"}
    with state.write() as connection:
        connection.execute(update(nights).filter_by(id=record.id).values(values))
