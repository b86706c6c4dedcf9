"""The verifier: what it is asked, what counts as an answer, and that its absence harms nobody."""

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.steering.breaker import Breaker, CircuitOpenError
from server.steering.metrics import Metrics
from server.steering.rewards.confidence import Confidence
from server.steering.rewards.reward import SignalUnavailableError
from server.steering.rewards.scorer import RewardSettingsError, Scorer
from server.steering.rewards.verifier import Verifier
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.fakes import answer, rendered
from tests.server.steering.verifier_service import HANG, Service, reply, running, scores

ENGINE = ScriptedEngine()
PROMPT = rendered(ENGINE, "How many apples?")


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A verifier on a service, with its clock and counters."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.clock = Clock()
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.verifier = self.make(service.url)

    def make(self, url: str, *, timeout_s: float = 5.0, retries: int = 2) -> Verifier:
        return Verifier(
            url,
            timeout_s=timeout_s,
            retries=retries,
            metrics=self.metrics,
            breaker=Breaker(failures=3, pause_s=30.0, clock=self.clock),
            backoff_s=0.001,
        )

    async def ask(self, *texts: str) -> Sequence[float | None]:
        return await self.verifier.score(PROMPT, [answer(text) for text in texts or ("5",)], [])

    async def fails(self, *texts: str) -> None:
        with pytest.raises(SignalUnavailableError):
            await self.ask(*texts)

    def count(self, result: str) -> float:
        return self.registry.get_sample_value("latentevolve_verifier_calls_total", {"result": result}) or 0.0


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running() as service:
        yield Bench(service)


async def test_all_answers_are_scored_by_one_post(bench: Bench) -> None:
    bench.service.replies = [scores(0, 0.25, None)]
    assert await bench.ask("5", "six", "") == [0.0, 0.25, None]
    assert bench.service.asked == [
        {"question": "How many apples?", "prompt": PROMPT.text, "answers": ["5", "six", ""]}
    ]
    assert bench.service.requests[0].startswith(b"POST /score HTTP/1.1")
    assert bench.count("scored") == 1


async def test_verifier_on_this_machine_is_not_asked_through_a_proxy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        bench.verifier = bench.make(bench.service.url)
        assert await bench.ask() == [1.0]
        assert (len(bench.service.asked), len(proxy.asked)) == (1, 0)

        bench.verifier = bench.make("http://verifier.invalid/score")
        assert await bench.ask() == [1.0]
        assert len(proxy.asked) == 1, "one elsewhere is asked as the operator's environment says"


async def test_text_without_utf8_bytes_is_asked_about_all_the_same(bench: Bench) -> None:
    prompt = replace(PROMPT, question="half a pair \ud800")
    assert await bench.verifier.score(prompt, [answer("5")], []) == [1.0]
    assert bench.service.asked[0]["question"] == prompt.question


@pytest.mark.parametrize("status", ["500 Broken", "503 Away", "429 Too many"])
async def test_busy_verifier_is_asked_again(bench: Bench, status: str) -> None:
    bench.service.replies = [reply({}, status), reply({}, status), scores(0.5)]
    assert await bench.ask() == [0.5]
    assert bench.count("scored") == 1
    bench.service.replies = [reply({}, status)]
    bench.service.asked.clear()
    await bench.fails()
    assert len(bench.service.asked) == 3
    assert bench.count("status") == 1


async def test_connection_that_breaks_is_tried_again(bench: Bench) -> None:
    bench.service.replies = [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", scores(0.5)]
    assert await bench.ask() == [0.5]


@pytest.mark.parametrize("status", ["400 Wrong", "404 Nowhere", "204 Nothing"])
async def test_refusal_is_not_asked_again(bench: Bench, status: str) -> None:
    bench.service.replies = [reply(b"", status)]
    await bench.fails()
    assert len(bench.service.asked) == 1


async def test_redirect_is_not_followed(bench: Bench) -> None:
    async with running() as elsewhere:
        bench.service.replies = [reply(b"", "307 There", f"location: {elsewhere.url}")]
        await bench.fails()
        assert elsewhere.asked == []
    assert bench.count("status") == 1


async def test_hanging_verifier_is_left_after_its_time_and_not_asked_again(bench: Bench) -> None:
    bench.service.replies = [HANG]
    bench.verifier = bench.make(bench.service.url, timeout_s=0.05)
    await bench.fails()
    assert (len(bench.service.asked), bench.count("timeout")) == (1, 1)


async def test_reply_that_drips_is_bound_by_the_same_time(bench: Bench) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n")
            for _ in range(4000):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        bench.verifier = bench.make(f"http://127.0.0.1:{port}/", timeout_s=0.1)
        await bench.fails()


async def test_nobody_at_the_address_is_unavailability(bench: Bench) -> None:
    async with running() as gone:
        url = gone.url
    bench.verifier = bench.make(url)
    await bench.fails()
    assert bench.count("unreachable") == 1


BAD = {
    "not-json": b"scores: 1",
    "no-scores": b"[1.0]",
    "wrong-count": b'{"scores": [0.1, 0.2]}',
    "not-a-number": b'{"scores": ["1.0"]}',
    "out-of-range": b'{"scores": [NaN]}',
    "too-long": b'{"scores": [0.5' + b" " * 10_000 + b"]}",
}


@pytest.mark.parametrize("kind", BAD)
async def test_reply_that_breaks_the_contract_is_a_failure_told_once(
    bench: Bench, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.service.replies = [reply(BAD[kind])]
    with caplog.at_level(logging.WARNING, "server.steering.rewards.verifier"):
        await bench.fails()
        await bench.fails()
    assert len(bench.service.asked) == 2, "such a reply is not asked for again"
    assert bench.count("bad-reply") == 2
    assert [kind in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    "bad", [b'{"scores": [true]}', b'{"scores": [1.01]}', b'{"scores": [-1]}', b"[" * 4000]
)
async def test_other_replies_that_are_no_scores_are_failures(bench: Bench, bad: bytes) -> None:
    bench.service.replies = [reply(bad)]
    await bench.fails()
    assert bench.count("bad-reply") == 1


async def test_compressed_reply_is_not_unpacked(bench: Bench) -> None:
    packed = gzip.compress(b'{"scores": [1.0]}')
    bench.service.replies = [reply(packed, "200 OK", "content-encoding: gzip")]
    await bench.fails()
    assert b"accept-encoding: identity" in bench.service.requests[0].lower()


async def test_verifier_that_keeps_failing_is_left_alone_and_tried_once_later(bench: Bench) -> None:
    bench.service.replies = [reply({}, "400 Wrong")]
    for _ in range(3):
        await bench.fails()
    await bench.fails()
    assert (len(bench.service.asked), bench.count("not-asked")) == (3, 1)

    bench.clock.now += 31
    await bench.fails()  # the probe fails, so that the pause begins anew
    await bench.fails()
    assert (len(bench.service.asked), bench.count("not-asked")) == (4, 2)

    bench.clock.now += 31
    bench.service.replies = [scores(0.75)]
    assert await bench.ask() == [0.75]
    assert await bench.ask() == [0.75]


async def test_failures_that_are_not_in_a_row_do_not_open_the_circuit(bench: Bench) -> None:
    bad, good = reply({}, "400 Wrong"), scores(1.0)
    bench.service.replies = [bad, bad, good, bad, bad, good]
    for expected in (False, False, True, False, False, True):
        if expected:
            assert await bench.ask() == [1.0]
        else:
            await bench.fails()


async def test_only_one_call_probes_and_a_cancelled_one_makes_room() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, pause_s=10, clock=clock)
    with pytest.raises(ZeroDivisionError), breaker.call():
        raise ZeroDivisionError
    assert breaker.is_open
    clock.now = 11

    async def probe() -> None:
        with breaker.call():
            with pytest.raises(CircuitOpenError), breaker.call():
                pass
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await probe()
    assert breaker.is_open, "a call that was cut off says nothing"
    with breaker.call():
        pass
    assert not breaker.is_open


async def test_log_does_not_hold_the_credentials_of_the_url(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.service.replies = [reply({}, "400 Wrong")]
    bench.verifier = bench.make(bench.service.url.replace("//", "//user:secret@"))
    with caplog.at_level(logging.DEBUG):
        await bench.fails()
    assert b"authorization: basic" in bench.service.requests[0].lower()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("server.")]
    assert ours
    assert not any("secret" in line for line in ours)


async def test_without_its_verifier_a_scorer_weighs_the_other_signals_and_says_so(bench: Bench) -> None:
    scorer = Scorer([(Confidence(), 1.0), (bench.verifier, 3.0)])
    given: Any = [answer("5", logprobs=(0.0,))]
    bench.service.replies = [scores(0.2), reply({}, "400 Wrong")]
    (with_it,) = await scorer.score(PROMPT, given, [])
    assert with_it.reward == pytest.approx((1.0 + 3 * 0.2) / 4)
    assert with_it.unavailable == ()
    (without,) = await scorer.score(PROMPT, given, [])
    assert (without.reward, dict(without.signals)) == (1.0, {"confidence": 1.0})
    assert without.unavailable == ("verifier",)


async def test_signal_left_out_is_not_asked(bench: Bench) -> None:
    scorer = Scorer([(Confidence(), 1.0), (bench.verifier, 1.0)])
    (scored,) = await scorer.score(PROMPT, [answer("5", logprobs=(0.0,))], [], only={"confidence"})
    assert (set(scored.signals), bench.service.asked) == ({"confidence"}, [])


async def test_verifier_is_weighed_as_the_setting_says(bench: Bench) -> None:
    scorer = Scorer.of("verifier=0.5,confidence=0.5", bench.verifier)
    (scored,) = await scorer.score(PROMPT, [answer("5", logprobs=(0.0,))], [])
    assert dict(scored.signals) == {"verifier": 1.0, "confidence": 1.0}
    with pytest.raises(RewardSettingsError, match="LATENTEVOLVE_VERIFIER_URL"):
        Scorer.of("verifier=1")
