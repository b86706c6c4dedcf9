"""Q: the weighted mean of the reward signals that apply to an answer.

Owns the weights and their spelling in the settings. Knows nothing of what the scores are used for.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from model.engine import Generation
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.confidence import Confidence
from server.steering.rewards.consistency import CONSISTENCY, Consistency
from server.steering.rewards.format import FORMAT, Format
from server.steering.rewards.reward import Reward, SignalUnavailableError

VERIFIER = "verifier"
"""Name of the signal that is not made here: it asks somebody else."""

_MAKERS: Mapping[str, Callable[[], Reward]] = {
    CONSISTENCY: Consistency,
    "confidence": Confidence,
    FORMAT: Format,
}
SIGNALS = (*_MAKERS, VERIFIER)


class RewardSettingsError(ValueError):
    """The setting `rewards` does not name signals and weights."""


@dataclass(frozen=True)
class Scored:
    """Q of one answer and the signals behind it, each in [0, 1]."""

    reward: float
    signals: Mapping[str, float] = field(default_factory=dict)
    unavailable: tuple[str, ...] = ()
    """Signals that would have applied and could not be had: rewards with and without them do not compare."""


class Scorer:
    """Scores answers. An answer that no signal applies to has reward 0 and no signals."""

    def __init__(self, rewards: Sequence[tuple[Reward, float]]) -> None:
        self._rewards = tuple(rewards)

    @classmethod
    def of(cls, setting: str, verifier: Reward | None = None) -> "Scorer":
        """Return the scorer that a setting such as `consistency=0.7,format=0.3` asks for.

        Args:
            verifier: The signal of that name; None: the setting may not name it.

        Raises:
            RewardSettingsError: naming the part that is wrong.
        """

        def make(name: str) -> Reward:
            if name != VERIFIER:
                return _MAKERS[name]()
            if verifier is None:
                raise RewardSettingsError("rewards: 'verifier' needs LATENTEVOLVE_VERIFIER_URL")
            return verifier

        return cls([(make(name), weight) for name, weight in parse_weights(setting).items()])

    @property
    def rewards(self) -> Sequence[tuple[Reward, float]]:
        """The signals and their weights."""
        return self._rewards

    async def score(
        self,
        prompt: RenderedPrompt,
        answers: Sequence[Generation],
        pool: Sequence[Generation],
        *,
        only: Collection[str] | None = None,
    ) -> list[Scored]:
        """Return one score per answer. A signal that is unavailable does not apply, and no error.

        A signal that scores some answers and says nothing of others gives those 0: a mean of fewer signals
        would not compare with theirs.

        Args:
            prompt: What was asked.
            answers: The answers to score.
            pool: The rollouts that vote.
            only: Signals that scored earlier answers to compare with, and now score these: no others are
                asked. None: all of them.
        """
        totals, weights = [0.0] * len(answers), [0.0] * len(answers)
        signals: list[dict[str, float]] = [{} for _ in answers]
        unavailable = []
        for reward, weight in self._rewards:
            if only is not None and reward.name not in only:
                continue
            try:
                values = await reward.score(prompt, answers, pool)
            except SignalUnavailableError:
                unavailable.append(reward.name)
                continue
            if only is None and all(value is None for value in values):
                continue
            for index, value in enumerate(values):
                totals[index] += weight * (value or 0.0)
                weights[index] += weight
                signals[index][reward.name] = value or 0.0
        return [
            Scored(min(1.0, total / weight) if weight else 0.0, named, tuple(unavailable))
            for total, weight, named in zip(totals, weights, signals, strict=True)
        ]


def parse_weights(setting: str) -> dict[str, float]:
    """Return the weight of each signal that the setting names, in its order; zero weights are left out.

    Raises:
        RewardSettingsError: naming the part that is wrong.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in setting.split(","))):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if name not in SIGNALS:
            raise RewardSettingsError(
                f"rewards: unknown signal {name!r} in {part!r}; known are {', '.join(SIGNALS)}"
            )
        if name in weights:
            raise RewardSettingsError(f"rewards: {name!r} is named twice")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not equals or not math.isfinite(weight) or weight < 0:
            raise RewardSettingsError(f"rewards: {part!r} is not name=weight with a weight of 0 or more")
        weights[name] = weight
    if not any(weights.values()):
        raise RewardSettingsError(f"rewards: {setting!r} gives no signal a weight above 0")
    return {name: weight for name, weight in weights.items() if weight}
