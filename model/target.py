"""What labels are worth, read off as few rows of a model as carry them.

Owns which tokens have to be read after a prompt, which answers share them, and what an answer is worth by the
logits there. Knows nothing of models.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from model.choice_trie import ChoiceTrie
from model.engine import Label


@dataclass(frozen=True)
class Target:
    """An answer whose likelihood is asked for."""

    tokens: tuple[int, ...]
    """Not empty."""
    trie: ChoiceTrie | None = None
    """The choices that a grammar holds it to."""
    decided: tuple[int, ...] = field(init=False)
    """Indices of the tokens that are not forced."""

    def __post_init__(self) -> None:
        decided = []
        for at, token in enumerate(self.tokens):
            allowed = self.allowed(at)
            if allowed is not None and token not in allowed:
                raise ValueError(f"token {at} of the answer belongs to none of its choices")
            if allowed is None or len(allowed) > 1:
                decided.append(at)
        object.__setattr__(self, "decided", tuple(decided))

    @property
    def inputs(self) -> tuple[int, ...]:
        """Tokens before the last one that is not forced: what a model has to read of the answer."""
        return self.tokens[: self.decided[-1]] if self.decided else ()

    def value(self, logits: torch.Tensor) -> torch.Tensor:
        """Return a scalar for the logits of the tokens that are decided, (len(decided), V).

        Free answers: the mean log-probability per token. Held to choices: the log-probability of the whole
        answer when each token is drawn among those that the grammar allows, as `model/decoder.py` draws.
        """
        if self.trie is None:
            return -torch.nn.functional.cross_entropy(logits, torch.tensor(self.tokens, device=logits.device))
        steps = []
        for row, at in zip(logits, self.decided, strict=True):
            allowed = self.trie.allowed(self.tokens[:at])
            steps.append(row[allowed].log_softmax(dim=0)[allowed.index(self.tokens[at])])
        return torch.stack(steps).sum()

    def allowed(self, at: int) -> list[int] | None:
        """Return the tokens that a grammar allows at an index; None: all of them."""
        return None if self.trie is None else self.trie.allowed(self.tokens[:at])


@dataclass(frozen=True)
class Part:
    """What one answer adds to a label."""

    label: int
    """Index of the label."""
    probability: float
    target: Target


@dataclass(frozen=True)
class Reading:
    """One row: a prompt, then `inputs`, and the parts that are read off it."""

    inputs: tuple[int, ...]
    parts: list[Part]

    @property
    def label(self) -> int:
        """Index of a label that is read here: its prompt is the row's."""
        return self.parts[0].label

    @property
    def offsets(self) -> set[int]:
        """Columns whose logits are needed, counted from the last one, which is 0."""
        return {offset for part in self.parts for offset in self.offsets_of(part)}

    def offsets_of(self, part: Part) -> list[int]:
        """Return those of one part, in the order of its decided tokens."""
        return [len(self.inputs) - at for at in part.target.decided]


def readings(
    labels: Sequence[Label], prompts: Sequence[Hashable], tries: Mapping[tuple[str, ...], ChoiceTrie]
) -> list[Reading]:
    """Return the rows that carry all labels; an answer that is forced from end to end needs none.

    Args:
        labels: B of them.
        prompts: Of each label something that is equal where rows may be shared.
        tries: Grammar of each set of choices.

    Raises:
        ValueError: an answer is none of its choices.
    """
    parts: dict[Hashable, list[Part]] = {}
    for at, (label, prompt) in enumerate(zip(labels, prompts, strict=True)):
        trie = tries[label.choices] if label.choices else None
        for answer, probability in zip(label.answers, label.probabilities, strict=True):
            part = Part(at, probability, Target(answer, trie))
            if part.target.decided:
                parts.setdefault(prompt, []).append(part)
    return [reading for of_prompt in parts.values() for reading in _shared(of_prompt)]


def _shared(parts: Iterable[Part]) -> list[Reading]:
    """Return rows for the parts of one prompt: what begins another row's inputs is read off that row."""
    rows: list[Reading] = []
    for part in sorted(parts, key=lambda part: -len(part.target.inputs)):
        inputs = part.target.inputs
        row = next((row for row in rows if row.inputs[: len(inputs)] == inputs), None)
        if row is None:
            row = Reading(inputs, [])
            rows.append(row)
        row.parts.append(part)
    return rows


def offsets_of(needed: Sequence[Reading]) -> list[int]:
    """Return the columns whose logits some rows need, counted from the last one."""
    return sorted(set().union(*(one.offsets for one in needed)))


def values_of(
    logits: torch.Tensor,
    needed: Sequence[Reading],
    offsets: Sequence[int],
    value: Callable[[Target, torch.Tensor], torch.Tensor] = Target.value,
) -> list[tuple[int, torch.Tensor]]:
    """Return (index of a label, what an answer adds to it, a scalar) for all that is read off rows.

    Args:
        logits: (B, len(offsets), V), of a row for each reading.
        needed: B readings.
        offsets: columns, counted from the last one.
        value: what an answer is worth by the logits of its decided tokens.
    """
    column = {offset: at for at, offset in enumerate(offsets)}
    return [
        (
            part.label,
            part.probability * value(part.target, row[[column[o] for o in one.offsets_of(part)]].float()),
        )
        for row, one in zip(logits, needed, strict=True)
        for part in one.parts
    ]
