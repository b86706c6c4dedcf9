"""A whole run, on the scripted engine: stopped, gone on with, refused."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.main import app
from bench.options import of_results
from bench.run import open_run
from bench.stream.journal import Journal
from bench.stream.loop import Loop, open_loop
from bench.stream.plan import Plan, plan_at_default
from bench.stream.questions import STREAM, Questions, Scorer
from bench.stream.runner import Runner
from cli.demonstration.stream import Item
from cli.failure import USAGE, CommandError
from cli.options import SECRETS
from config.settings import Settings
from model.engine import EngineError
from tests.bench.stream.conftest import items_of
from tests.scripted_engine import ScriptedEngine
from worker.errors import TrainingDivergedError

ARMS = ("plain", "random", "low", "evolution")
UNLIKE = ("weather today", "songs of old")
WHOLE = {
    ("start", "plain"): 4,
    ("start", "random"): 4,
    ("day-1", "served"): 12,
    ("night-1", "night"): 1,
    ("night-1", "random"): 4,
    ("night-1", "low"): 4,
    ("night-1", "evolution"): 4,
    ("night-1", "unlike"): 2,
}
"""Rows of a run of one seed, by stage and arm."""


class KilledError(Exception):
    """Stands for a kill."""


def runner(
    engine: ScriptedEngine,
    settings: Settings,
    plan: Plan,
    folder: Path,
    kill: Callable[[tuple[str, int]], bool],
) -> Runner:
    items = items_of(plan.held_out + plan.nights * plan.day)

    def deal(seed: int) -> tuple[list[Questions], list[list[Item]], Scorer]:
        scorer = Scorer(items, box=False)
        held_out, days = plan.parts(items, seed)
        return [Questions(STREAM, held_out, scorer)], days, scorer

    @asynccontextmanager
    async def opened(seed: int) -> AsyncIterator[Loop]:
        own = settings.model_copy(update={"data_dir": folder / f"seed-{seed}", "night_seed": seed})
        async with open_loop(engine, own, plan) as loop:
            yield loop

    def progress(phase: str, done: int, total: int, message: str) -> None:
        if kill((phase, done)):
            raise KilledError(phase)

    return Runner(
        plan=plan,
        journal=Journal(folder / "rows.jsonl"),
        arms=ARMS,
        stream=deal,
        unlike=UNLIKE,
        open_server=opened,
        progress=progress,
        stage_ended=lambda: None,
    )


async def test_stopped_run_goes_on_and_gives_each_row_once(
    engine: ScriptedEngine, settings: Settings, plan: Plan, tmp_path: Path
) -> None:
    # Killed before the day's answers are kept, after the night, and between two arms.
    stops = [("day-1", 0), ("night-1", 1), ("night-1 low", 0)]
    for stop in stops:
        killed = runner(engine, settings, plan, tmp_path, stop.__eq__)
        with pytest.raises(KilledError):
            await killed.run([0])
    done = runner(engine, settings, plan, tmp_path, lambda at: False)
    await done.run([0])

    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    counts = Counter((row["stage"], row["arm"]) for row in rows)
    assert counts == WHOLE
    assert len({(row["stage"], row["arm"], row["question"]) for row in rows}) == len(rows)
    (night,) = (row for row in rows if row["arm"] == "night")
    assert night["spent"] > 0
    assert all(row["spent"] > 0 for row in rows if row["arm"] == "served")
    assert night["state"] in ("promoted", "on trial", "refused")
    remembered = [row["remembered"] for row in rows if "remembered" in row]
    assert night["episodes"] == len(remembered) > 0
    assert 0 < night["labels"] <= len(remembered)
    assert night["labels_right"] <= sum(one["correct"] for one in remembered)

    calls = len(engine.calls)
    await done.run([0])
    assert len(engine.calls) == calls  # nothing is left to do


async def test_what_a_night_has_computed_is_counted(
    engine: ScriptedEngine, settings: Settings, plan: Plan, tmp_path: Path
) -> None:
    await runner(engine, settings, plan, tmp_path, lambda at: False).run([0])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    spent = {row["arm"]: row["spent"] for row in rows if "spent" in row}
    assert spent["night"] > spent["served"] > 0


async def test_a_night_that_goes_on_says_so_for_only_a_part_of_it_was_counted(loop: Loop) -> None:
    first = await loop.night("night-1", lambda *_: None)
    again = await loop.night("night-1", lambda *_: None)
    assert (first["resumed"], again["resumed"]) == (False, True)


async def test_run_says_how_long_the_rest_will_take_as_far_as_its_rows_tell(
    engine: ScriptedEngine, settings: Settings, plan: Plan, tmp_path: Path
) -> None:
    said: list[tuple[str, str]] = []
    run = runner(engine, settings, replace(plan, nights=2), tmp_path, lambda at: False)
    tell = replace(run, progress=lambda phase, done, total, message: said.append((phase, message)))
    await tell.run([0])
    messages = dict(reversed(said))  # the first of each phase
    assert "served, night, low, evolution, unlike left" in messages["day-1"]
    assert "night, low, evolution, unlike left" in messages["night-1"]
    assert messages["day-2"].endswith("under a minute left")
    assert said[-1][1] == "stream"


async def test_a_memory_that_another_run_has_open_is_said(
    engine: ScriptedEngine, settings: Settings, plan: Plan
) -> None:
    async with open_loop(engine, settings, plan):
        with pytest.raises(CommandError, match="in use by another process"):
            async with open_loop(engine, settings, plan):
                pass


class Broken(ScriptedEngine):
    """Fails in one of its methods while it is told to."""

    broken = ""

    async def keys(self, *arguments: Any, **options: Any) -> Any:
        return await self._unless_broken("keys", arguments, options)

    async def generate(self, *arguments: Any, **options: Any) -> Any:
        return await self._unless_broken("generate", arguments, options)

    async def latent_gradient(self, *arguments: Any, **options: Any) -> Any:
        return await self._unless_broken("latent_gradient", arguments, options)

    async def _unless_broken(self, name: str, arguments: Any, options: Any) -> Any:
        if name == self.broken:
            raise EngineError("out of order")
        return await getattr(super(), name)(*arguments, **options)


@pytest.mark.parametrize(
    ("at", "method", "message"),
    [
        (("day-1", 0), "generate", "exploring failed"),
        (("day-1", 0), "keys", "exploring failed"),
        (("night-1", 0), "latent_gradient", "the night failed: .*out of order"),
        (("night-1 low", 0), "keys", "steering failed: engine-error"),
        (("night-1 evolution", 0), "generate", "steering failed: .*search-failed"),
    ],
)
async def test_what_fails_stops_the_run_and_is_no_result(
    settings: Settings, plan: Plan, tmp_path: Path, at: tuple[str, int], method: str, message: str
) -> None:
    engine = Broken()

    def breaks(now: tuple[str, int]) -> bool:
        if now == at:
            engine.broken = method
        return False

    with pytest.raises(CommandError, match=message) as failed:
        await runner(engine, settings, plan, tmp_path, breaks).run([0])
    assert failed.value.hint is not None
    assert "same command goes on" in failed.value.hint
    engine.broken = ""
    await runner(engine, settings, plan, tmp_path, lambda now: False).run([0])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert Counter((row["stage"], row["arm"]) for row in rows) == WHOLE
    (night,) = (row for row in rows if row["arm"] == "night")
    assert night["spent"] > 0
    assert all(row["spent"] > 0 for row in rows if row["arm"] == "served")
    assert night["state"] in ("promoted", "on trial", "refused")


async def test_training_that_diverges_is_a_result(
    engine: ScriptedEngine, settings: Settings, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def diverges(*arguments: Any, **options: Any) -> None:
        raise TrainingDivergedError("gradients were not finite")

    monkeypatch.setattr("worker.night.train", diverges)
    await runner(engine, settings, plan, tmp_path, lambda now: False).run([0])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert Counter((row["stage"], row["arm"]) for row in rows) == WHOLE
    (night,) = (row for row in rows if row["arm"] == "night")
    assert (night["state"], night["version"]) == ("failed", None)


async def test_question_too_long_for_its_answer_is_named_before_anything_is_asked(
    engine: ScriptedEngine, settings: Settings, plan: Plan, tmp_path: Path
) -> None:
    wordy = replace(plan, instruction="at length " * 5000)
    with pytest.raises(CommandError, match="tokens leaves no room for") as refused:
        await runner(engine, settings, wordy, tmp_path, lambda at: False).run([0])
    assert refused.value.exit_code == USAGE
    assert engine.calls == []


def test_folder_of_another_plan_is_refused_naming_the_options(tmp_path: Path) -> None:
    options = {"day": 12, "nights": 1, "settings": {}}
    head = open_run(tmp_path, "stream", options, begun=False)
    assert open_run(tmp_path, "stream", options, begun=True) == head
    assert open_run(tmp_path, "stream", options | {"nights": 2}, begun=True, may_change=("nights",)) == head
    other = {"day": 13, "nights": 2, "settings": {"recall_k": "8"}}
    with pytest.raises(CommandError, match="other options: day, recall_k") as refused:
        open_run(tmp_path, "stream", other, begun=True, may_change=("nights",))
    assert refused.value.exit_code == USAGE
    assert str(tmp_path) in refused.value.message


def test_run_goes_on_under_a_build_with_more_options_at_their_defaults(tmp_path: Path) -> None:
    before = {"day": 12, "settings": {"recall_k": "8"}}
    head = open_run(tmp_path, "stream", before, begun=False)
    later = {"day": 12, "skew": "", "also": (), "settings": {"recall_k": "8", "night_batch": "4"}}
    defaults = {"skew": "", "also": (), "settings": {"recall_k": "4", "night_batch": "4"}}
    assert open_run(tmp_path, "stream", later, begun=True, defaults=defaults) == head
    for name, value in (("skew", "Sports=0.7"), ("settings", {"recall_k": "4", "night_batch": "2"})):
        with pytest.raises(CommandError, match="other options"):
            open_run(tmp_path, "stream", later | {name: value}, begun=True, defaults=defaults)


def test_every_option_of_the_stream_has_a_default_that_a_resume_knows(plan: Plan) -> None:
    unknown = {field.name for field in fields(plan)} - set(plan_at_default())
    assert unknown == {"model", "data"}
    assert set(of_results(Settings(_env_file=None))) <= set(plan_at_default()["settings"])


def test_no_secret_is_written_down() -> None:
    assert not SECRETS & set(of_results(Settings(_env_file=None)))


def test_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    options = {"day": 12, "settings": {}}
    head = open_run(tmp_path, "stream", options, begun=False)
    head.pop("build")
    (tmp_path / "run.json").write_text(json.dumps(head), encoding="utf-8")
    with pytest.raises(CommandError, match="a run of an earlier version"):
        open_run(tmp_path, "stream", options, begun=True)


def test_head_of_a_run_that_came_to_nothing_is_replaced(tmp_path: Path) -> None:
    open_run(tmp_path, "stream", {"model": "no-such-model"}, begun=False)
    head = open_run(tmp_path, "stream", {"model": "another"}, begun=False)
    assert head["settings"] == {"model": "another"}
    assert json.loads((tmp_path / "run.json").read_text()) == head


def test_command_refuses_the_folder_of_another_plan(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "seed-0").mkdir(parents=True)
    head = {"build": "0123456789ab", "settings": {"model": "small", "day": 40}}
    (folder / "run.json").write_text(json.dumps(head))
    ran = CliRunner().invoke(app, ["stream", str(folder), "--model", "small", "--day", "5", "--nights", "1"])
    assert isinstance(ran.exception, CommandError)
    named = ran.exception.message.partition(": ")[2].split(", ")
    assert "day" in named
    assert not {"model", "nights"} & set(named)


def test_too_few_questions_leave_no_run_behind(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["stream", str(tmp_path / "run"), "--day", "1000"])
    assert isinstance(ran.exception, CommandError)
    assert "are needed" in ran.exception.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [["--choices"], ["--engine", "vllm"]])
def test_latentseek_is_refused_at_once_where_it_cannot_answer(tmp_path: Path, more: list[str]) -> None:
    ran = CliRunner().invoke(app, ["stream", str(tmp_path / "run"), "--arms", "plain,latentseek", *more])
    assert isinstance(ran.exception, CommandError)
    assert "latentseek" in ran.exception.message
    assert not (tmp_path / "run").exists()
