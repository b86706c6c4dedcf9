"""What may not be kept is in no file, and what is kept works as before."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from memory.archive import Memory, Taken, Taking, archive_of
from memory.edge_store import EdgeStore
from memory.episode import Episode
from memory.qdrant_store import QdrantStore
from memory.redaction import EVERYTHING, Redaction
from memory.store import EpisodeStore, Where
from tests.memory.conftest import HIDDEN, LENGTH, SPACE, recall_from

Make = Callable[..., Episode]
MAIL = r"[\w.]+@[\w.]+"
OFF, PATTERN = Redaction.of("off", None), Redaction.of("full", MAIL)
SIZE = {"length": LENGTH, "hidden_size": HIDDEN}


@pytest.fixture(params=["edge", "local"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Redaction], EpisodeStore]]:
    """Opens stores of one kind on the same data, one at a time."""
    client = QdrantClient(":memory:") if request.param == "local" else None
    stores: list[EpisodeStore] = []

    def open_store(redact: Redaction) -> EpisodeStore:
        if client is not None:
            return QdrantStore(client, space=SPACE, redact=redact, **SIZE)
        for store in stores:
            store.close()
        stores.append(EdgeStore(tmp_path / "store", space=SPACE, redact=redact, **SIZE))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()
    if client is not None:
        client.close()


def test_without_text_neither_texts_nor_tokens_are_written_and_latents_are_recalled(
    opened: Callable[[Redaction], EpisodeStore], make_episode: Make
) -> None:
    store = opened(OFF)
    episode = make_episode(choices=("yes", "no"), choice_log_probabilities=(-1.0, -0.5))
    store.add([episode])
    [found] = recall_from(store, episode.key, tenant="default", k=1, floor=0.9)
    kept = found.episode
    assert (kept.prompt_text, kept.answer_text, kept.choices, kept.choice_log_probabilities) == (
        "",
        "",
        (),
        (),
    )
    assert (kept.prompt_token_ids, kept.answer_token_ids) == ((), ())
    assert (kept.id, kept.reward, kept.signals) == (episode.id, episode.reward, episode.signals)
    assert kept.latent.tobytes() == episode.latent.astype("float16").astype("float32").tobytes()
    assert store.page(Where(), limit=1).episodes[0]["prompt_text"] == ""
    assert [one.replayable for one in store.outlines()] == [False]


def test_what_a_pattern_matches_is_replaced_and_its_tokens_are_not_kept(
    opened: Callable[[Redaction], EpisodeStore], make_episode: Make
) -> None:
    store = opened(PATTERN)
    asked = make_episode(prompt_text="Write to ann@example.org and bob@example.org", answer_text="Done.")
    answered = make_episode(answer_text="It is ann@example.org, I think.")
    chosen = make_episode(choices=("ann@example.org", "none"), choice_log_probabilities=(-0.1, -2.0))
    other = make_episode()
    store.add([asked, answered, chosen, other])
    kept = {one.id: one for one in store.scroll()}
    assert kept[asked.id].prompt_text == "Write to [redacted] and [redacted]"
    assert kept[asked.id].answer_text == "Done."
    assert kept[answered.id].answer_text == "It is [redacted], I think."
    assert kept[chosen.id].choices == ("[redacted]", "none")
    for one in (asked, answered, chosen):
        assert kept[one.id].prompt_token_ids == kept[one.id].answer_token_ids == ()
    assert kept[other.id].summary() == other.summary()
    assert {one.id for one in store.outlines() if one.replayable} == {other.id}


@pytest.mark.parametrize("redact", [OFF, PATTERN])
def test_a_text_of_before_the_setting_is_not_written_again(
    opened: Callable[[Redaction], EpisodeStore], make_episode: Make, redact: Redaction
) -> None:
    before = make_episode(answer_text="ann@example.org", reward=0.9)
    opened(EVERYTHING).add([before])
    store = opened(redact)
    store.add([make_episode(id=before.id, answer_text="worse", reward=0.1, key=before.key)])
    kept = store.get(before.id)
    assert kept is not None
    assert "ann" not in kept.answer_text
    assert (kept.seen, kept.answer_token_ids) == (2, ())


@pytest.mark.parametrize("redact", [OFF, PATTERN])
def test_an_answer_that_was_called_wrong_does_not_come_back(
    opened: Callable[[Redaction], EpisodeStore], make_episode: Make, redact: Redaction
) -> None:
    store = opened(redact)
    found = make_episode(answer_text="ann@example.org")
    store.add([found])
    store.add([replace(found, reward=0.0, signals={"feedback": 0.0}, latent_earned=False)])
    store.add([found])
    kept = store.get(found.id)
    assert kept is not None
    assert (kept.retracted, kept.latent_earned) == (True, False)


def test_a_text_that_may_not_be_kept_is_in_no_file(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(prompt_text="I am ann@example.org", answer_text="Hello", choices=("Hello",))
    for redact, gone in ((OFF, (b"I am", b"Hello", b"ann@")), (PATTERN, (b"ann@",))):
        folder = tmp_path / redact.text
        with closing(EdgeStore(folder, space=SPACE, redact=redact, **SIZE)) as store:
            store.add([episode])
        content = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
        assert b"created_at" in content
        assert not any(text in content for text in gone)


def test_archives_of_redacted_memories_are_taken_and_those_of_others_are_redacted(
    opened: Callable[[Redaction], EpisodeStore], make_episode: Make, tmp_path: Path
) -> None:
    memory = Memory(SPACE, "default", LENGTH, HIDDEN)
    open_text = make_episode(prompt_text="I am ann@example.org")
    with closing(EdgeStore(tmp_path / "other", space=SPACE, **SIZE)) as other:
        other.add([open_text])
        stream = b"".join(archive_of(other, memory))
    store = opened(OFF)
    for _ in range(2):
        taking = Taking(store, memory)
        taking.feed(stream)
        assert taking.finish() == Taken(1, 1, 0)
        assert [one.prompt_text for one in store.scroll()] == [""]
        stream = b"".join(archive_of(store, memory))
        assert b"ann@" not in stream
        store.delete([open_text.id])


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(re.error):
        Redaction.of("full", "(")
