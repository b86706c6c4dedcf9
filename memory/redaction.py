"""What is kept of what people write: all of it, none, or all but what a pattern matches.

Owns what an episode looks like with less in it, and what of a text may be written. Knows nothing of stores,
which ask before they write.

    setting          texts and choices              tokens                        what a night learns
    full             kept                           kept                          all
    full, pattern    matches become [redacted]      of those without a match      from those without a match
    off              empty                          none                          nothing

Of answers that are redacted alike nothing tells whether they are the same: what somebody says of one is about
all of them, and one that was called wrong stays so until somebody calls one right.

Tokens say what texts do, so they go with them. Key, latent and reward stay: such an episode is recalled,
counted and measured as others are. They come of the text, but do not spell it.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from memory.episode import Episode

KeptText = Literal["full", "off"]

REPLACEMENT = "[redacted]"
"""What stands where something matched."""


@dataclass(frozen=True)
class Redaction:
    """What of an episode may be written."""

    text: KeptText = "full"
    pattern: re.Pattern[str] | None = None

    @classmethod
    def of(cls, text: KeptText, pattern: str | None) -> "Redaction":
        """Return the redaction that settings ask for.

        Raises:
            re.error: `pattern` is no regular expression.
        """
        return cls(text, None if pattern is None else re.compile(pattern))

    def __call__(self, episode: Episode) -> Episode:
        """Return the episode as it may be written; the same one where nothing has to go."""
        if self.text == "off":
            return _without_tokens(episode, "", "", ())
        if self.pattern is None:
            return episode
        prompt, answer, *choices = (
            self.pattern.sub(REPLACEMENT, text)
            for text in (episode.prompt_text, episode.answer_text, *episode.choices)
        )
        if (prompt, answer, tuple(choices)) == (episode.prompt_text, episode.answer_text, episode.choices):
            return episode
        return _without_tokens(episode, prompt, answer, tuple(choices))

    def text_of(self, text: str) -> str:
        """Return a text as it may be written."""
        if self.text == "off":
            return ""
        return text if self.pattern is None else self.pattern.sub(REPLACEMENT, text)

    def keeps(self, *texts: str) -> bool:
        """Return whether all of these may be written as they are, and so their tokens."""
        return self.text != "off" and all(self.text_of(text) == text for text in texts)


EVERYTHING = Redaction()
"""Nothing is left out."""


def _without_tokens(episode: Episode, prompt: str, answer: str, choices: tuple[str, ...]) -> Episode:
    return replace(
        episode,
        prompt_text=prompt,
        answer_text=answer,
        choices=choices,
        choice_log_probabilities=episode.choice_log_probabilities if choices else (),
        held_log_probabilities=episode.held_log_probabilities if choices else (),
        prompt_token_ids=(),
        answer_token_ids=(),
    )
