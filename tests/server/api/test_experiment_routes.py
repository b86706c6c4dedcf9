"""The experiment over HTTP: who is held out, what both arms are worth, and the switch."""

from typing import Any

import pytest

from memory.experiment import Experiments, Value
from tests.server.api.conftest import Serve, Served


@pytest.fixture
async def held(serve: Serve) -> Served:
    """A gateway with something to recall, of whose users half are held out."""
    served = await serve(holdout_share=0.5)
    await served.chat("sum one", latent={"effort": "high"})
    assert await served.gateway.remember.drain()
    return served


def reason(answer: Any) -> str:
    return str(answer.headers["x-latent-reason"])


async def test_a_user_is_held_out_or_not_whatever_is_asked(held: Served) -> None:
    seen = {}
    for number in range(8):
        said = {
            reason(await held.chat(f"sum {question}", user=f"u{number}")) for question in ("two", "three")
        }
        (seen[number],) = said
    assert set(seen.values()) == {"holdout", "recalled"}
    for number, expected in seen.items():
        assert reason(await held.chat("sum four", safety_identifier=f"u{number}")) == expected
    out = next(number for number, one in seen.items() if one == "holdout")
    asked = await held.chat("sum two", user=f"u{out}", latent={"effort": "low"})
    assert reason(asked) == "recalled", "it says itself how it wants to be steered"


async def test_both_arms_are_compared_by_what_people_say_and_by_length_and_time(held: Served) -> None:
    for number in range(12):
        answer = await held.chat("sum two", user=f"u{number}")
        rating = {"inference_id": answer.headers["x-latent-trace"], "metric_name": "rating"}
        liked = reason(answer) == "recalled"
        said = await held.http.post("/v1/feedback", json=rating | {"value": liked})
        assert said.status_code == 200
    assert await held.gateway.experiment.drain()
    await held.gateway.experiment.look()
    [experiment] = (await held.http.get("/v1/experiments")).json()["data"]
    assert (experiment["tenant"], experiment["share"]) == ("default", 0.5)
    assert experiment["switch"] == {"steering": "on", "cause": None, "message": "", "at": None}
    metrics = experiment["metrics"]
    arms = [metrics["rating"][arm] for arm in ("steered", "holdout")]
    assert sum(arm["n"] for arm in arms) == 12
    assert [arm["mean"] for arm in arms] == [1.0, 0.0]
    assert metrics["rating"]["difference"] == 1.0
    assert metrics["rating"]["evidence"]["mean"] == 1.0
    assert metrics["rating"]["interval"] is None, "too few"
    assert metrics["tokens"]["steered"]["n"] == arms[0]["n"]
    assert metrics["tokens"]["evidence"] is None
    assert metrics["latency_s"]["holdout"]["mean"] > 0


async def test_harm_turns_steering_off_and_an_operator_puts_it_back(held: Served) -> None:
    experiments = held.gateway.experiment
    worse = [
        Value("rating", arm, f"{arm}{number}", float(arm == "holdout"))  # type: ignore[arg-type]
        for number in range(20)
        for arm in ("steered", "holdout")
    ]
    Experiments(held.gateway.state, held.gateway.space).note("default", worse)
    await experiments.look()
    [found] = (await held.http.get("/v1/experiments")).json()["data"]
    assert (found["switch"]["steering"], found["switch"]["cause"]) == ("off", "evidence")
    assert "rating is 1.00 lower" in found["switch"]["message"]
    assert reason(await held.chat("sum two")) == "steering-off"
    assert "latentevolve_tenants_off 1.0" in (await held.http.get("/metrics")).text
    put = (await held.http.put("/v1/experiments", json={"steering": "on"})).json()
    assert (put["switch"]["steering"], put["switch"]["cause"]) == ("on", "operator")
    assert put["metrics"]["rating"]["steered"] == {"n": 0, "mean": None}
    assert reason(await held.chat("sum two", latent={"effort": "low"})) == "recalled"
    put = (await held.http.put("/v1/experiments", json={"steering": "off"})).json()
    assert put["switch"]["steering"] == "off"
    assert reason(await held.chat("sum two")) == "steering-off"


async def test_metrics_show_both_arms(held: Served) -> None:
    await held.chat("sum two", user="u1")
    values = [
        Value("tokens", arm, f"{arm}{number}", number % 7.0)  # type: ignore[arg-type]
        for number in range(60)
        for arm in ("steered", "holdout")
    ]
    Experiments(held.gateway.state, held.gateway.space).note("default", values)
    await held.gateway.experiment.look()
    text = (await held.http.get("/metrics")).text
    assert 'latentevolve_experiment_mean{arm="steered",metric="tokens",tenant="default"}' in text
    for bound in ("mean", "lower", "upper"):
        named = f'bound="{bound}",metric="tokens",tenant="default"'
        assert f"latentevolve_experiment_difference{{{named}}}" in text
    assert 'latentevolve_experiment_harm_e_value{metric="rating",tenant="default"}' in text


@pytest.mark.parametrize("body", [{"steering": "maybe"}, {}, {"steering": "on", "share": 0.5}])
async def test_what_is_no_switch_is_refused(served: Served, body: dict[str, Any]) -> None:
    assert (await served.http.put("/v1/experiments", json=body)).status_code == 400
    [experiment] = (await served.http.get("/v1/experiments")).json()["data"]
    assert (experiment["share"], experiment["switch"]["steering"]) == (0.0, "on")
