"""The whole command on a run's folder, with a model of random weights."""

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.main import app
from bench.options import digest, of_results
from bench.run import open_run
from bench.stream.journal import Journal
from bench.stream.loop import open_loop
from bench.stream.plan import Plan
from bench.stream.questions import Files
from cli.failure import CommandError
from config.settings import Settings
from model.engine import SteeredPrompt
from model.transformers_engine import TransformersEngine
from tests.bench.bounds.remembering import remember
from tests.worker.conftest import one_thread

__all__ = ["one_thread"]  # autouse, here as there

LABELS = ("red", "blue")
ARMS = ("latent", "lora", "kv", "ttsv", "ttrl", "latent+gold")


@pytest.fixture(autouse=True)
def nights_learn_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.dataset.FEWEST", 4)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "colours.jsonl"
    rows = [{"question": f"colour of thing {n}", "answer": LABELS[n % 2]} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(tmp_path: Path, data: Path, tiny_model: str) -> Path:
    """A run of one day and one night, whose answers to the day are those that the model gives."""
    own = {"latent_length": 4, "night_steps": 2, "night_min_episodes": 4, "night_min_reward": 0.0}
    folder = tmp_path / "run"
    settings = Settings(_env_file=None, model=tiny_model, data_dir=folder / "seed-0", **own)
    plan = Plan(
        model=tiny_model,
        data=str(data),
        day=10,
        held_out=4,
        nights=1,
        max_tokens=4,
        choices=True,
        settings=of_results(settings, {"night_seed"}),
        digests=(digest(data), ""),
    )
    open_run(folder, "stream", asdict(plan), begun=False)
    (folder / "seed-0").mkdir()
    held_out, (day,), _ = Files(plan).deal(0)

    async def live() -> None:
        engine = TransformersEngine(tiny_model, length=4, placement=settings.placement)
        try:
            async with open_loop(engine, settings, plan) as loop:
                prompts = [loop.render(item) for item in day]
                decoded = await engine.generate(
                    [SteeredPrompt(prompt.token_ids) for prompt in prompts], prompts[0].decoding
                )
                answers = [(answer.token_ids, answer.text) for answer in decoded]
                # Labels that nobody called right are left out where no choice is sure.
                called_right = {"verifier": 1.0}
                await remember(loop, engine, prompts, answers, signals=called_right, choices=LABELS)
        finally:
            await engine.close()

    asyncio.run(live())
    plain = {"seed": 0, "stage": "start", "set": "stream", "arm": "plain", "correct": False, "wall_s": 1}
    plain |= {"tokens": 2, "finished": True, "generated": 2, "forward": 9}
    Journal(folder / "rows.jsonl").add(
        [
            *(plain | {"question": item.question} for item in held_out[0].items),
            {"seed": 0, "stage": "night-1", "arm": "night", "question": "", "version": "v1"},
        ]
    )
    return folder


def bounds(run: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["bounds", str(run), "--rank", "2", "--passes", "1", *more])


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "bounds" / "rows.jsonl").read_text().splitlines()]


def texts_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    return {(row["arm"], row["question"]): row["text"] for row in rows if row["arm"] != "training"}


def test_every_way_is_trained_and_asked_once_and_a_stopped_run_goes_on(run: Path) -> None:
    ran = bounds(run, "--json")
    assert ran.exit_code == 0, ran.output + repr(ran.exception)
    rows = rows_of(run)
    answered = Counter(row["arm"] for row in rows if row["arm"] != "training")
    assert answered == dict.fromkeys(ARMS, 4)
    learned = {row["question"]: row for row in rows if row["arm"] == "training"}
    assert set(learned) == set(ARMS)
    assert learned["latent"]["labels"] == learned["latent+gold"]["labels"] == 10
    assert learned["latent"]["labels_right"] < learned["latent+gold"]["labels_right"] == 10
    assert learned["latent"]["values"] < learned["kv"]["values"]
    assert "labels" not in learned["ttrl"]
    assert min(row["forward"] for row in learned.values()) > 0
    document = json.loads(ran.stdout)
    compared = {(one["above"], one["below"]) for one in document["results"] if "above" in one}
    assert ("lora", "latent") in compared
    assert {("latent+gold", "latent"), ("latent", "ttrl"), ("latent", "ttsv")} <= compared
    assert any(one.get("arm") == "plain" for one in document["results"])

    # Stopped while the update was asked: its answers are missing, and all that comes after it.
    path = run / "bounds" / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    kept = next(at for at, row in enumerate(rows) if row["arm"] == "lora") + 2
    path.write_text("".join(lines[:kept]))
    trained = {file.name: file.stat().st_mtime_ns for file in (run / "bounds").glob("*.safetensors")}
    again = bounds(run)
    assert again.exit_code == 0, again.output + repr(again.exception)
    assert texts_of(rows_of(run)) == texts_of(rows)
    files = {file.name: file.stat().st_mtime_ns for file in (run / "bounds").glob("*.safetensors")}
    assert files == trained  # nothing is trained twice


def test_only_what_is_named_is_trained(run: Path) -> None:
    ran = bounds(run, "--ways", "ttsv,latent+gold")
    assert ran.exit_code == 0
    assert "Beside each other" not in ran.output  # than the latent, which was not asked
    rows = rows_of(run)
    assert {row["arm"] for row in rows if row["arm"] != "training"} == {"ttsv", "latent+gold"}
    assert {row["question"] for row in rows if row["arm"] == "training"} == {"ttsv", "latent", "latent+gold"}
    ran = bounds(run, "--ways", "lora,prompts")
    assert isinstance(ran.exception, CommandError)
    assert "'prompts' is none" in ran.exception.message


def test_other_options_do_not_go_on(run: Path) -> None:
    assert bounds(run).exit_code == 0
    ran = bounds(run, "--passes", "2")
    assert isinstance(ran.exception, CommandError)
    assert "passes" in ran.exception.message


@pytest.mark.parametrize(
    ("change", "message"),
    [("server", "with a server in the loop"), ("data", "no longer what it was"), ("night", "has no night-1")],
)
def test_a_run_that_tells_too_little_is_refused(run: Path, data: Path, change: str, message: str) -> None:
    if change == "server":
        head = json.loads((run / "run.json").read_text())
        head["settings"]["engine"] = "server"
        (run / "run.json").write_text(json.dumps(head))
    elif change == "data":
        data.write_text(data.read_text() + '{"question": "more?", "answer": "red"}\n')
    else:
        (run / "rows.jsonl").write_text("")
    ran = bounds(run)
    assert isinstance(ran.exception, CommandError)
    assert message in ran.exception.message
