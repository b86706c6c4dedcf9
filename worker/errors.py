"""What a night raises.

Owns the error tree. Each message is a sentence an operator can act on: it ends up in the record.
"""


class ConsolidationError(Exception):
    """Base of what a night raises.

    ConsolidationError
    ├── TooFewEpisodesError     nothing is wrong, there is just too little to learn from
    ├── SpaceMismatchError      episodes of another latent space than the engine's
    ├── TrainingDivergedError   the training left the finite numbers
    ├── NightBusyError          another night of the same space holds the lock
    ├── NightOverruledError     somebody else has ended or taken this night
    └── NightCrashedError       the worker died in this night too often
    """


class TooFewEpisodesError(ConsolidationError):
    """Too few episodes, or too few different ones, to train on some and judge on others."""


class SpaceMismatchError(ConsolidationError):
    """The snapshot's episodes belong to another latent space than the engine's."""


class TrainingDivergedError(ConsolidationError):
    """Losses or gradients are not finite, several steps in a row."""


class NightBusyError(ConsolidationError):
    """Another night of the same space is running."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"night {holder or 'unknown'} of this space is still running")
        self.holder = holder


class NightOverruledError(ConsolidationError):
    """Somebody else has ended this night, such as a gateway that took its worker for dead, or works on it."""


class NightCrashedError(ConsolidationError):
    """The worker died in this night too often to try again."""
