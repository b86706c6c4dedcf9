"""What an answer says in the end, in a form that can be compared.

Owns the normalisation of answers. Knows nothing of votes.
"""

import contextlib
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

SHORT_WORDS = 8
"""An answer of at most so many words is its own final answer; a longer one must hold a box or a number."""

LONGEST = 16_384
"""Characters of an answer that are looked at, its last ones: some texts take the square of their length."""

_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-−]?\.\d+")
_LEAD_IN = re.compile(r"^(?:so |therefore |thus )?(?:it is|it's|(?:the|my|this)(?: \w+){1,5}? is) ")
_LABEL = re.compile(r"^[^:]*: ")
_CALL = re.compile(
    # <tool_call>, <|tool_calls_section_begin|>, <minimax:tool_call>, <｜tool▁calls▁begin｜>
    r"<[|｜]?(?:\w+[:|｜])?(?:[a-z]+_)?(?:tool|function)[_▁]calls?(?:[_▁]section)?(?:[_▁](?:start|begin))?[|｜]?>"
    r"|<function(?:=| name=)[\"']?[^\s\"'<>]+[\"']?>"
    r"|<[|｜](?:python_tag|action_start)[|｜]>"
    r"|<TOOLCALL>|\[TOOL_CALLS\]"
)
"""How chat templates begin the call of a tool, whole marks only; calls that are bare JSON need none."""
_BESIDE_MARKS = re.compile(r" ?([<>\[\]]) ?")
_FENCE = re.compile(r"^```[a-z]*\n(.*?)\n?```$", re.DOTALL)


def final_answer(text: str, choices: Sequence[str] | None = None) -> str | None:
    r"""Return the final answer in canonical form, None when the text has none to compare.

    The first that is found counts: JSON, calls of tools, the last `\boxed{}`, the last number, a short text.
    An answer that was held to `choices` is compared as it stands: "grade 3, urgent" is not "grade 3,
    routine".
    """
    if choices:
        return text if text in choices else None
    if len(text) > LONGEST:
        if _json(text.strip()) is not None or _CALL.search(text) is not None:
            return None  # their ends do not tell them apart
        text = text[-LONGEST:]
    text = unicodedata.normalize("NFKC", text).strip()
    if not text:
        return None
    if (parsed := _json(text)) is not None:
        return parsed
    if (call := _CALL.search(text)) is not None:
        return _calls(text[call.start() :])
    if (box := boxed(text)) is not None:
        return _number(box) or _short(box) or None
    numbers = _NUMBER.findall(text)
    if numbers:
        return _number(numbers[-1])
    if len(text.split()) <= SHORT_WORDS:
        return _short(text) or None
    return None


def final_span(text: str, choices: Sequence[str] | None = None) -> tuple[int, int]:
    r"""Return where the final answer stands, (first character, behind the last).

    That is the calls of tools, else what the last `\boxed{}` holds, else the last number; all of the text
    where it is one of the choices, JSON, or says none of these.
    """
    everything = 0, len(text)
    if choices or _json(text.strip()) is not None:
        return everything
    if (call := _CALL.search(text)) is not None:
        return call.start(), len(text)
    if (box := _box(text)) is not None:
        return box
    numbers = list(_NUMBER.finditer(text))
    return numbers[-1].span() if numbers else everything


def boxed(text: str) -> str | None:
    r"""Return what the last complete `\boxed{...}` holds, braces balanced; None without one."""
    box = _box(text)
    return None if box is None else text[slice(*box)].strip()


def _box(text: str) -> tuple[int, int] | None:
    """Return where the content of the last complete box stands."""
    opened, last = list[int](), None
    for brace in re.finditer(r"[{}]", text):
        at = brace.start()
        if brace.group() == "{":
            opened.append(at)
        elif opened:
            begin = opened.pop()
            if text.endswith("\\boxed", 0, begin) and (last is None or begin >= last[0]):
                last = begin + 1, at
    return last


def _json(text: str) -> str | None:
    """Return objects and lists in canonical form; bare numbers and strings are no JSON answers."""
    fenced = _FENCE.match(text)
    body = fenced.group(1) if fenced else text
    if not body.lstrip().startswith(("{", "[")):
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return _canonical(value)


def _calls(text: str) -> str:
    """Return calls of tools with JSON in canonical form, and outside of it without blanks beside marks."""
    decoder, parts, start, at = json.JSONDecoder(), list[str](), 0, 0
    while at < len(text):
        end = at + 1
        if text[at] in "{[":
            with contextlib.suppress(ValueError, RecursionError):
                value, end = decoder.raw_decode(text, at)
                parts += _marks(text[start:at]), _canonical(value)
                start = end
        at = end
    return "".join([*parts, _marks(text[start:])])


def _marks(text: str) -> str:
    return _BESIDE_MARKS.sub(r"\1", " ".join(text.split()))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _number(text: str) -> str | None:
    """Return a number as its shortest decimal, so that 1,000.50 and 1000.5 agree."""
    plain = text.strip().strip("$€£%").replace(",", "").replace("−", "-").replace("\\", "").strip()
    if not re.fullmatch(r"-?(?:\d+(?:\.\d+)?|\.\d+)", plain):
        return None
    whole, _, fraction = plain.lstrip("-").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    digits = f"{whole}.{fraction}" if fraction else whole
    return f"-{digits}" if plain.startswith("-") and digits != "0" else digits


def _short(text: str) -> str:
    """Return a short text without case, punctuation and the words that introduce an answer."""
    words = _LEAD_IN.sub("", _LABEL.sub("", " ".join(text.casefold().split())))
    parts = re.sub(r"[^\w\s]", " ", words).split()
    # "A" may be what a question with letters asks for.
    return " ".join([word for word in parts if word not in {"a", "an", "the"}] or parts)
