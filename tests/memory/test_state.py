"""The state: what it keeps, on SQLite and on PostgreSQL."""

import errno
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, inspect, select, text, update

import memory.database
from config.settings import Settings
from memory.database import StateUnavailableError, sqlite_url
from memory.episode import LatentMemoryError, now
from memory.free_space import NoRoomError
from memory.schema import STEPS, VERSION, NewerStateError, migrate, outcomes, schema_version, version_of
from memory.state import ChosenSchedule, Feedback, KeptExchange, NewTrace, State
from tests.memory.full_disk import Disk
from tests.postgres_server import PostgresServer

ROOT = Path(__file__).parents[2]


def test_outcomes_come_back_in_order_of_observation(state: State, state_url: str) -> None:
    assert state.outcomes("space", "default") == {}
    assert state.add_outcomes("space", "default", "v1/0", [("b", 0.5), ("a", -1.0)], "night") == 2
    assert state.add_outcomes("space", "default", "v2/3", [("a", 1.0)], "day") == 1
    assert state.add_outcomes("space", "default", "v1/0", [("0", 0.25)], "day") == 1
    with State(state_url) as other_process:
        assert other_process.outcomes("space", "default") == {"v1/0": [0.5, -1.0, 0.25], "v2/3": [1.0]}


def test_outcomes_of_some_rows_are_read_alone(state: State) -> None:
    for number in range(3):
        state.add_outcomes("space", "default", f"v{number}/0", [("a", 0.5), ("b", -0.5)], "night")
    assert state.outcomes("space", "default", ["v1/0", "v9/0"]) == {"v1/0": [0.5, -0.5]}
    assert state.outcomes("space", "default", []) == {}
    assert state.seen_outcomes("space", "default", ["v0/0", "v1/0"]) == (4, 4)
    assert state.seen_outcomes("space", "default") == (6, 6)


def test_a_prompt_counts_once_per_source_and_its_first_word_stays(state: State) -> None:
    for difference in (0.5, -0.5):
        state.add_outcomes("space", "default", "v1/0", [("a", difference)], "night")
        state.add_outcomes("space", "default", "v1/0", [("a", difference / 2)], "day")
    assert state.add_outcomes("space", "default", "v1/0", [("c", 0.1), ("c", 0.9), ("a", 0.9)], "day") == 1
    assert state.outcomes("space", "default") == {"v1/0": [0.5, 0.25, 0.1]}


def test_spaces_and_tenants_have_outcomes_of_their_own(state: State) -> None:
    for place in (("space", "default"), ("space", "other"), ("elsewhere", "default")):
        assert state.seen_outcomes(*place) == (0, 0)
        state.add_outcomes(*place, "v1/0", [("a", 0.5)], "night")
        assert state.outcomes(*place) == {"v1/0": [0.5]}
        assert state.seen_outcomes(*place)[0] == 1


def test_what_people_say_bounds_what_the_day_has_measured_and_nothing_else(state: State) -> None:
    about = ("s", "default", "v1/0")
    state.add_outcomes(*about, [("a", 0.9), ("b", 0.8)], "night")
    state.add_outcomes(*about, [("a", 0.7), ("b", -0.4), ("c", 0.6)], "day")
    before, seen = state.outcomes(*about[:2])["v1/0"], state.seen_outcomes(*about[:2])
    bounds = [("a", -0.2), ("b", 1.0), ("unheard of", -1.0)]
    assert state.add_outcomes(*about, bounds, "people") == 3
    state.add_outcomes("s", "default", "v1/1", [("a", 1.0)], "people")
    assert before == [0.9, 0.8, 0.7, -0.4, 0.6]
    assert state.outcomes(*about[:2]) == {"v1/0": [0.9, 0.8, -0.2, -0.4, 0.6]}
    assert state.seen_outcomes(*about[:2]) != seen, "by which gateways see that something has changed"


def test_of_what_people_say_of_a_prompt_the_least_stays(state: State) -> None:
    about = ("s", "default", "v1/0")
    state.add_outcomes(*about, [("a", 0.7), ("b", 0.6)], "day")
    for said, new, left in ((0.9, 1, 0.7), (-0.2, 1, -0.2), (0.5, 0, -0.2), (-1.0, 1, -1.0)):
        seen = state.seen_outcomes(*about[:2])
        assert state.add_outcomes(*about, [("a", said)], "people") == new
        assert state.outcomes(*about[:2]) == {"v1/0": [left, 0.6]}
        assert (state.seen_outcomes(*about[:2]) != seen) == bool(new)


@pytest.mark.parametrize("difference", [1.01, -1.5, math.nan, math.inf])
def test_an_outcome_out_of_range_is_refused_and_none_is_noted(state: State, difference: float) -> None:
    with pytest.raises(ValueError, match="expected -1 to 1"):
        state.add_outcomes("space", "default", "v1/0", [("a", 0.5), ("b", difference)], "night")
    with pytest.raises(ValueError, match="expected one of night, day"):
        state.add_outcomes("space", "default", "v1/0", [("a", 0.5)], "noon")  # type: ignore[arg-type]
    assert state.outcomes("space", "default") == {}


def test_of_many_that_note_the_same_prompts_each_is_noted_once(state: State, state_url: str) -> None:
    def note(worker: int) -> int:
        with State(state_url) as mine:
            return sum(
                mine.add_outcomes("space", "default", "v1/0", [(f"prompt-{number}", worker / 8)], "day")
                for number in range(12)
            )

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(note, range(4))) == 12
    assert len(state.outcomes("space", "default")["v1/0"]) == 12


OPEN = """
import sys
from memory.state import State
sys.stdin.readline()
with State(sys.argv[1]) as state:
    state.add_outcomes("space", "default", sys.argv[2], [("a", 0.5)], "day")
"""


def test_processes_that_start_at_once_make_the_tables_once(state_url: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, state_url, str(number)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(3)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        _, complaint = child.communicate(timeout=120)
        assert child.returncode == 0, complaint
    with State(state_url) as state:
        assert sorted(state.outcomes("space", "default")) == ["0", "1", "2"]


def test_steps_bring_an_older_schema_up_to_date_once(state: State) -> None:
    taken: list[str] = []

    def step(name: str) -> Any:
        def take(connection: Connection) -> None:
            taken.append(name)
            connection.execute(text(f"CREATE TABLE {name} (id INTEGER)"))

        return take

    steps = (*STEPS, step("second"), step("third"))
    for _ in range(2):
        with state.write() as connection:
            migrate(connection, steps)
    assert taken == ["second", "third"]
    with state.read() as connection:
        assert version_of(connection) == VERSION + 2


def test_a_state_of_the_first_schema_becomes_what_a_new_one_is(state: State, state_url: str) -> None:
    def layout() -> dict[str, set[str]]:
        with state.read() as connection:
            found = inspect(connection)
            return {
                table: {column["name"] for column in found.get_columns(table)}
                | {f"index {index['name']}" for index in found.get_indexes(table)}
                for table in found.get_table_names()
            }

    new = layout()
    state.write_traces([NewTrace("old", {"mode": "plain"}, b"z")], {}, 10)
    with state.write() as connection:
        for statement in (
            "DROP INDEX ix_traces_tenant_number",
            "ALTER TABLE traces DROP COLUMN tenant",
            "DROP TABLE api_keys",
            "DROP TABLE feedback",
            "DROP TABLE activations",
            "DROP TABLE experiment_values",
            "DROP TABLE experiment_switches",
            "DROP TABLE erased_rows",
            "ALTER TABLE schedules DROP COLUMN chosen_cron",
            "ALTER TABLE schedules DROP COLUMN chosen_episodes",
            "DROP INDEX ix_traces_prompt",
            *(
                f"ALTER TABLE traces DROP COLUMN {column}"
                for column in ("prompt", "asked", "answer", "graded")
            ),
        ):
            connection.execute(text(statement))
        connection.execute(update(schema_version).values(version=1))
    with State(state_url) as opened:
        assert layout() == new
        assert opened.trace("old", latent=True) == ({"mode": "plain"}, b"z")
        assert opened.exchange("old") == KeptExchange(None, None, None)
        said = Feedback("f", "old", "comment", "fine")
        assert opened.add_feedback(said) == said


def test_feedback_is_kept_once_under_its_id_in_the_order_it_came(state: State, state_url: str) -> None:
    state.write_traces([NewTrace("a", {}), NewTrace("b", {})], {}, 10)
    said = [Feedback("1", "a", "rating", True), Feedback("2", "a", "comment", "\u00e4", {"by": "me"})]
    said += [Feedback("3", "b", "rating", 0.25)]
    for one in said:
        assert state.add_feedback(one) is one
    with State(state_url) as other:
        assert other.add_feedback(replace(said[0], value=False)) == said[0]
        assert other.feedback_on("a") == said[:2]
        assert other.feedback("3") == said[2]
        assert other.feedback_on("a")[0].value is True
        assert other.feedback("4") is None


def test_what_was_said_goes_with_its_trace(state: State) -> None:
    for name in "abc":
        state.write_traces([NewTrace(name, {})], {}, 2)
        state.add_feedback(Feedback(f"of {name}", name, "comment", "fine"))
    state.write_traces([NewTrace("d", {})], {}, 2)
    assert [len(state.feedback_on(name)) for name in "abc"] == [0, 0, 1]


def test_what_was_asked_and_answered_lies_beside_the_trace_until_it_is_forgotten(state: State) -> None:
    asked, answer = {"text": "Wie viele?"}, {"text": "zw\u00f6lf"}
    new = [
        NewTrace(name, {"mode": "plain"}, prompt=prompt, asked=asked) for name, prompt in ("ap", "bp", "cq")
    ]
    state.write_traces([*new, NewTrace("d", {})], {}, 10, {"a": answer})
    graded = {"v1/0": {"row": ["12"], "baseline": [None]}}
    state.write_traces([], {}, 10, {"c": answer, "d": answer}, {"a": graded, "d": graded})
    assert state.exchange("a") == KeptExchange("p", asked, answer, graded)
    assert state.exchange("b") == KeptExchange("p", asked, None)
    assert state.exchange("c") == KeptExchange("q", asked, answer)
    assert state.exchange("d") == KeptExchange(None, None, None)
    assert state.exchange("e") is None
    assert state.trace("a", latent=False) == ({"mode": "plain"}, None)
    for name in "acd":
        state.add_feedback(Feedback(name, name, "comment", "fine"))
    state.forget_exchanges(["p"])
    state.write_traces([], {}, 10, {"b": answer})
    nothing = KeptExchange(None, None, None)
    assert [state.exchange(name) == nothing for name in "abc"] == [True, True, False]
    assert [len(state.feedback_on(name)) for name in "acd"] == [0, 1, 1]
    state.forget_exchanges(None)
    assert state.exchange("c") == nothing
    assert [len(state.feedback_on(name)) for name in "cd"] == [0, 0]


def test_what_was_asked_before_a_moment_is_forgotten_and_what_was_later_is_not(state: State) -> None:
    moment = datetime(2026, 11, 1, 12, tzinfo=UTC)
    for hours in (-1, 0, 1):
        created_at = (moment + timedelta(hours=hours, microseconds=hours)).isoformat()
        new = NewTrace(f"{hours}", {"created_at": created_at}, prompt="p", asked={"text": "Wie viele?"})
        state.write_traces([new], {}, 10)
        state.add_feedback(Feedback(f"{hours}", f"{hours}", "comment", "fine"))
    state.write_traces([NewTrace("taken over", {}, prompt="p", asked={})], {}, 10)
    state.forget_exchanges_before(moment.astimezone(timezone(timedelta(hours=5))))
    asked = [state.exchange(name) for name in ("-1", "0", "1")]
    assert [one is not None and one.asked is not None for one in asked] == [False, True, True]
    assert [len(state.feedback_on(name)) for name in ("-1", "0", "1")] == [0, 1, 1]


@pytest.mark.parametrize("words", [1, 5_000])
def test_what_was_forgotten_is_in_no_file_and_what_was_not_is(tmp_path: Path, words: int) -> None:
    def holds(text: str) -> bool:
        return any(text.encode() in file.read_bytes() for file in tmp_path.iterdir())

    with State.in_folder(tmp_path) as state:
        for name in ("forget", "keep"):
            asked, answer = {"text": f"{name}-asked " * words}, {"text": f"{name}-answer " * words}
            state.write_traces([NewTrace(name, {}, prompt=name, asked=asked)], {}, 10, {name: answer})
            state.add_feedback(Feedback(name, name, "comment", f"{name}-comment " * words))
        said = [f"{name}-{what}" for name in ("forget", "keep") for what in ("asked", "answer", "comment")]
        assert all(map(holds, said))
        state.forget_exchanges(["forget"])
        assert [holds(text) for text in said] == [False] * 3 + [True] * 3
        state.write_traces([NewTrace("last", {})], {}, 0)
        state.forget_exchanges([])
        assert not any(map(holds, said))


def test_a_step_that_fails_changes_nothing(state: State) -> None:
    def fail(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE half_made (id INTEGER)"))
        raise OSError(errno.ENOSPC, "no space left")

    with pytest.raises(OSError, match="no space"), state.write() as connection:
        migrate(connection, (*STEPS, fail))
    with state.read() as connection:
        assert version_of(connection) == VERSION
        assert not connection.dialect.has_table(connection, "half_made")


def test_a_state_of_a_newer_release_is_refused(state: State, state_url: str) -> None:
    with state.write() as connection:
        connection.execute(update(schema_version).values(version=99))
    with pytest.raises(NewerStateError, match="schema 99"):
        State(state_url)


def test_what_a_block_wrote_before_it_failed_is_not_kept(state: State) -> None:
    row = {"space": "s", "tenant": "t", "prior_row": "r", "prompt": "p", "source": "day", "difference": 0.5}

    def fail() -> None:
        with state.write() as connection:
            connection.execute(insert(outcomes).values(row | {"observed_at": now()}))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert state.outcomes("s", "t") == {}


def test_connections_that_the_server_has_closed_are_made_anew(postgres: PostgresServer) -> None:
    url = postgres.database()
    with State(url) as state, State(url) as other:
        mine = "pid != pg_backend_pid() AND backend_type = 'client backend'"
        with other.read() as connection:
            connection.execute(
                text(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {mine}")
            )
        assert state.outcomes("space", "default") == {}


def test_who_stops_in_the_midst_of_writing_holds_up_nobody(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.database, "IDLE_S", 1)
    url, noted = postgres.database(), []
    with State(url) as stopped, State(url) as other:
        with pytest.raises(StateUnavailableError), stopped.write():
            noted.append(other.add_outcomes("space", "default", "v1/0", [("a", 0.5)], "day"))
        noted.append(stopped.add_outcomes("space", "default", "v1/0", [("b", 0.5)], "day"))
    assert noted == [1, 1]


def test_a_trace_is_changed_and_only_so_many_are_kept(state: State) -> None:
    for number in range(5):
        state.write_traces(
            [NewTrace(f"{number}", {"number": number, "fate": "pending"}, b"z" * number)], {}, 3
        )
    state.write_traces([], {"3": {"fate": "stored"}, "0": {"fate": "stored"}}, 3)
    assert [state.trace(f"{number}", latent=False) for number in range(2)] == [None, None]
    assert state.trace("3", latent=True) == ({"number": 3, "fate": "stored"}, b"zzz")
    assert state.trace("3", latent=False) == ({"number": 3, "fate": "stored"}, None)


def test_a_schedule_is_followed_since_it_was_first_seen(state: State, state_url: str) -> None:
    first, later = datetime(2026, 11, 26, 12, 0, 0, 5, UTC), datetime(2026, 11, 27, 3, tzinfo=UTC)
    assert state.follow("space", "0 3 * * *", first) == first
    with State(state_url) as other:
        assert other.follow("space", "0 3 * * *", later) == first
        assert other.follow("another", "0 3 * * *", later) == later
        assert other.follow("space", "0 5 * * *", later) == later, "another schedule"
        assert other.follow("space", "0 5 * * *", first) == first, "the clock was ahead"


def test_what_an_operator_chose_is_kept_beside_what_is_followed(state: State, state_url: str) -> None:
    first, later = datetime(2026, 11, 26, 12, tzinfo=UTC), datetime(2026, 11, 27, 3, tzinfo=UTC)
    assert state.chosen_schedule("space") == ChosenSchedule()
    state.choose_schedule("space", ChosenSchedule("0 5 * * *", 0), first)
    with State(state_url) as other:
        assert other.chosen_schedule("space") == ChosenSchedule("0 5 * * *", 0)
        assert other.chosen_schedule("another") == ChosenSchedule()
        assert other.follow("space", "0 5 * * *", first) == first
    state.choose_schedule("space", ChosenSchedule(None, 7), later)
    assert state.chosen_schedule("space") == ChosenSchedule(None, 7)
    assert state.follow("space", "0 5 * * *", later) == first, "it was followed all the time"


def test_a_row_is_noted_as_erased_once_when_it_first_was(state: State) -> None:
    state.note_erasure("space", {"v1/0": True, "v1/1": False})
    noted = state.erased_rows("space")
    assert [(one.row, one.active) for one in noted] == [("v1/0", True), ("v1/1", False)]
    state.note_erasure("space", {"v1/0": False, "v2/0": True})
    assert state.erased_rows("space")[:2] == noted
    assert [one.row for one in state.erased_rows("space")] == ["v1/0", "v1/1", "v2/0"]
    assert state.erased_rows("another") == []
    began = state.erased_rows("space")[2].erased_at
    state.note_erasure("space", {"v1/0": True, "v2/0": True}, began)
    assert state.erased_rows("space")[:2] == noted, "of an erasure before"
    assert state.erased_rows("space")[2].erased_at > began, "of this one, which goes on"


def test_a_database_that_others_lock_is_an_error_of_the_memory(
    state: State, state_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.database, "WAIT_S", 0.2)
    state.add_outcomes("space", "default", "v1/0", [("a", 0.5)], "day")
    with state.write(), State(state_url) as impatient:
        with pytest.raises(StateUnavailableError, match="cannot be used"):
            impatient.add_outcomes("space", "default", "v1/0", [("b", 0.5)], "day")
        # Reading waits for nobody.
        assert impatient.outcomes("space", "default") == {"v1/0": [0.5]}
    assert state.add_outcomes("space", "default", "v1/0", [("b", 0.5)], "day") == 1


def test_who_writes_is_alone_from_the_first_reading_on(state: State) -> None:
    began, order = threading.Event(), []

    def other() -> None:
        began.set()
        with state.write() as connection:
            connection.execute(select(outcomes)).all()
            order.append("other")

    with state.write() as connection:
        connection.execute(select(outcomes)).all()
        thread = threading.Thread(target=other)
        thread.start()
        began.wait()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database" * 100)
    with pytest.raises(StateUnavailableError, match=r"state\.db cannot be used: file is not a database"):
        State.in_folder(tmp_path)


def test_a_server_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://user:secret@/name?host={tmp_path}"
    with pytest.raises(StateUnavailableError, match="cannot be used") as refused:
        State.open(Settings(state_url=url, data_dir=tmp_path, _env_file=None))
    assert "secret" not in str(refused.value)


def test_below_the_floor_nothing_is_noted(tmp_path: Path) -> None:
    disk = Disk()
    with State(sqlite_url(tmp_path / "state.db"), disk) as state:
        disk.free_mib = 24
        with pytest.raises(NoRoomError, match="outcomes cannot be written"):
            state.add_outcomes("space", "default", "v1/0", [("a", 0.5)], "day")
        assert state.outcomes("space", "default") == {}
        disk.free_mib = 25
        assert state.add_outcomes("space", "default", "v1/0", [("a", 0.5)], "day") == 1


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    with State.in_folder(tmp_path) as state:
        with state.write() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        event_rows = [(f"{number:04}" * 100, 0.5) for number in range(200)]
        with state.write() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        with pytest.raises(NoRoomError, match="is full"):
            state.add_outcomes("space", "default", "v1/0", event_rows, "day")
        assert state.outcomes("space", "default") == {}


def test_every_error_is_one_of_the_memory() -> None:
    for error in (StateUnavailableError, NewerStateError, NoRoomError):
        assert issubclass(error, LatentMemoryError)


def test_a_connection_that_is_in_use_at_the_end_is_closed_when_it_is_given_back(state_url: str) -> None:
    state = State(state_url)
    with state.read() as connection:
        used = connection.connection.dbapi_connection
        state.close()
    assert used is not None
    with pytest.raises(Exception, match="closed"):
        used.cursor()
