"""Where latents stand in a rendered prompt, and which tokens they start from (decisions/latents.md).

Owns the search for a chat template's closing tokens, the index before which latents go, and the tokens of
the neutral start. Knows a tokenizer only by its `apply_chat_template` and `encode`, and nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from model.engine import PlacementError

PlacementKind = Literal["user_turn_end", "after_header"]

NEUTRAL_VERSION = 2
"""Changes with the tokens of the neutral start, so that latents that begin at two of them never meet."""

# They end in a letter, a full stop, a digit, a bracket and a symbol, because byte-pair merges across
# the border between a message and plain-text closing marks depend on the message's last character.
_PROBES = ("Name a colour", "Is it raining?  Tell me.", "Add 4 and 17", "Fix f(x)", "What costs 5 €")


@dataclass(frozen=True)
class Placement:
    """The place for latents in prompts of one tokenizer."""

    kind: PlacementKind
    suffix: tuple[int, ...]
    """Tokens that end every prompt of the chat template: what closes the last message, then the header
    of the answer. Empty: the template has none, and no prompt has a place."""
    neutral: tuple[int, ...]
    """Tokens that do little harm at this place: a newline at the end of a message; behind the header the
    header once more, for newlines there derail answers. A newline where the template has no header."""
    end: int | None
    """Token that ends an answer: what closes the model's own messages, else the tokenizer's end of sequence.
    None: there is none."""

    @classmethod
    def of(cls, tokenizer: Any, kind: PlacementKind) -> "Placement":
        """Find the closing tokens of `tokenizer`'s chat template by rendering probe chats."""
        if kind not in ("user_turn_end", "after_header"):
            raise ValueError(f"unknown placement {kind!r}")
        newline = tuple(tokenizer.encode("\n", add_special_tokens=False))
        if not has_template(tokenizer):
            return cls(kind, (), newline, tokenizer.eos_token_id)
        probes = [[{"role": "user", "content": probe}] for probe in _PROBES]
        chats = [render_chat(tokenizer, probe) for probe in probes]
        header = _header(tokenizer, probes[0], chats[0]) if kind == "after_header" else ()
        return cls(kind, _common_suffix(chats), header or newline, _end(tokenizer))

    def position(self, token_ids: Sequence[int]) -> int:
        """Return the index before which latents go, in 1 … len(token_ids).

        Raises:
            PlacementError: the prompt does not end in the closing tokens, or is nothing else.
        """
        size = len(self.suffix)
        if not size:
            raise PlacementError("the tokenizer has no chat template that closes its messages")
        if len(token_ids) <= size or tuple(token_ids[-size:]) != self.suffix:
            raise PlacementError("the prompt does not end as the chat template ends prompts")
        return len(token_ids) - size if self.kind == "user_turn_end" else len(token_ids)

    def neutral_tokens(self, length: int) -> tuple[int, ...]:
        """Return the `length` tokens whose embeddings are the neutral start: whole repetitions at its end."""
        return (self.neutral * length)[-length:]


def has_template(tokenizer: Any) -> bool:
    """Return whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def render_chat(
    tokenizer: Any, messages: Sequence[dict[str, str]], *, answering: bool = True
) -> tuple[int, ...]:
    """Return the tokens of chat messages, with the generation prompt when `answering`.

    Raises:
        PlacementError: the tokenizer has no chat template.
    """
    if not has_template(tokenizer):
        raise PlacementError("the tokenizer has no chat template")
    rendered = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=answering, tokenize=True, return_dict=False
    )
    return tuple(int(token) for token in rendered)


def _header(tokenizer: Any, messages: Sequence[dict[str, str]], chat: tuple[int, ...]) -> tuple[int, ...]:
    """Return the end of `chat`, the rendered messages, that only the generation prompt brings."""
    try:
        unanswered = render_chat(tokenizer, messages, answering=False)
    except TemplateError:  # a template may refuse to leave the answer out
        return ()
    # What follows may differ instead of missing: some templates end a chat without it with an end token.
    return chat[_shared([chat, unanswered]) :]


def _end(tokenizer: Any) -> int | None:
    """Return the token that ends an answer: the first that closes what the model says, if it is special."""
    said = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}] for probe in _PROBES]
    end: int | None = tokenizer.eos_token_id
    try:
        closing = _common_suffix([render_chat(tokenizer, chat, answering=False) for chat in said])
    except TemplateError:
        return end
    if not closing:
        return end
    added = tokenizer.added_tokens_decoder.get(closing[0])
    return closing[0] if added is not None and added.special else end


def _common_suffix(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    size = _shared([sequence[::-1] for sequence in sequences])
    return sequences[0][len(sequences[0]) - size :]


def _shared(sequences: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens all sequences have in common before the first that differs."""
    size = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        size += 1
    return size
