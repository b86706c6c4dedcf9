"""Pages of a list, over memories that change while somebody reads."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from memory.listing import Place, Summary, newest_first

START = datetime(2026, 3, 1, tzinfo=UTC)


class Memory:
    """Episodes by id, given in the order of time alone, as stores do."""

    def __init__(self) -> None:
        self.times: dict[str, datetime] = {}

    def add(self, number: int, second: int) -> None:
        self.times[str(UUID(int=number))] = START + timedelta(seconds=second)

    def newest(self, start: datetime | None, most: int) -> list[Summary]:
        there = [(time, name) for name, time in self.times.items() if start is None or time <= start]
        there.sort(key=lambda one: one[0], reverse=True)
        return [{"id": name, "created_at": time.isoformat()} for time, name in there[:most]]


@given(seconds=st.lists(st.integers(0, 4), max_size=40), limit=st.integers(1, 9), data=st.data())
def test_a_walk_shows_once_what_is_there_all_the_time(
    seconds: list[int], limit: int, data: st.DataObject
) -> None:
    memory = Memory()
    for number, second in enumerate(seconds):
        memory.add(number, second)
    always, ever = set(memory.times), set(memory.times)
    shown: list[Place] = []
    after: Place | None = None
    while True:
        page = newest_first(memory.newest, limit, after)
        assert len(page.episodes) <= limit
        shown += map(Place.of, page.episodes)
        if page.next is None:
            break
        assert len(page.episodes) == limit
        assert Place.parse(page.next.cursor) == page.next
        after = page.next
        gone = (
            data.draw(st.sets(st.sampled_from(sorted(memory.times)), max_size=3)) if memory.times else set()
        )
        for name in gone:
            del memory.times[name]
        always -= gone
        for second in data.draw(st.lists(st.integers(0, 4), max_size=2)):
            memory.add(1000 + len(ever), second)
            ever |= set(memory.times)
    names = [place.id for place in shown]
    assert always <= set(names) <= ever
    assert len(set(names)) == len(names)
    assert [place.rank for place in shown] == sorted((place.rank for place in shown), reverse=True)
