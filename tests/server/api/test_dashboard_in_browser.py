"""The dashboard in a real browser, on a gateway of scripted parts behind a real port."""

import asyncio
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import uvicorn
from playwright.async_api import Browser, Page, ViewportSize, async_playwright, expect

from memory.night import NightLog
from server.api.dashboard import FOLDER
from tests.server.api.conftest import Parts, Served, _served
from tests.tables import row

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LAPTOP, PHONE = ViewportSize(width=1280, height=800), ViewportSize(width=390, height=844)
VIEWS = {
    "overview": "Overview",
    "memory": "Memory",
    "kinds": "Kinds of request",
    "nights": "Nights",
    "priors": "Priors",
    "traces": "Traces",
    "keys": "Keys",
}
KEY = "secret of this test"
TOPICS = ("sum", "colour", "river")

pytestmark = pytest.mark.slow
in_browser = pytest.mark.asyncio(loop_scope="module")
expect.set_options(timeout=20_000)  # machines that run tests are busy


@dataclass
class Site:
    """A gateway behind a port, and a browser to look at it."""

    served: Served
    browser: Browser
    url: str

    @asynccontextmanager
    async def page(self, view: str = "", *, key: str | None = KEY, **options: Any) -> AsyncIterator["Seen"]:
        """Open a page in a browser context of its own."""
        context = await self.browser.new_context(**{"viewport": LAPTOP, "color_scheme": "light"} | options)
        if key is not None:
            await context.add_init_script(f"sessionStorage.setItem('latentevolve.key', '{key}')")
        seen = Seen(await context.new_page())

        async def recorded(route: Any) -> None:
            seen.asked.append(route.request.url)
            await route.continue_()

        await context.route("**/*", recorded)
        seen.page.on("console", lambda said: said.type == "error" and seen.errors.append(said.text))
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        await seen.page.goto(f"{self.url}/dashboard#{view}")
        yield seen
        await context.close()


@dataclass
class Seen:
    """A page, what it asked for and what went wrong on it."""

    page: Page
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A gateway with a key, some memories of three topics and two priors, of which the second is active."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("there is no Chromium on the PATH: apt-get install chromium")
    async with AsyncExitStack() as stack:
        root = tmp_path_factory.mktemp("dashboard")
        served = await stack.enter_async_context(_served(root, Parts(), True, {"api_key": KEY}))
        served.http.headers["authorization"] = f"Bearer {KEY}"
        for number in range(4):
            for topic in TOPICS:
                effort = "medium" if number else "low"
                await served.chat(f"{topic} number {number}", latent={"effort": effort})
        assert await served.gateway.remember.drain()
        await _publish(served)
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = uvicorn.Server(uvicorn.Config(served.app, lifespan="off", log_config=None))
        running = asyncio.create_task(server.serve(sockets=[port]))
        stack.push_async_callback(_ended, server, running)
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        stack.push_async_callback(browser.close)
        yield Site(served, browser, f"http://127.0.0.1:{port.getsockname()[1]}")


async def _publish(served: Served) -> None:
    engine, gateway = served.engine, served.gateway
    prompts = [engine.render([{"role": "user", "content": topic}]) for topic in TOPICS]
    keys = (await engine.keys(prompts)).numpy()
    for number in (1, 2):
        rows = [row(engine.neutral_latent(), keys[at : at + 1]) for at in range(number)]
        version = gateway.registry.publish(rows, {"parent": f"v{number - 1}" if number > 1 else None})
        for differences in ([0.9] * 20, [0.2] * 5)[:number]:
            outcomes = [(str(at), one) for at, one in enumerate(differences)]
            at = len(differences) == 5
            gateway.state.add_outcomes(gateway.space, "default", f"{version}/{int(at)}", outcomes, "night")
        gateway.registry.activate(version)
    await gateway.prior.refresh()


async def _ended(server: uvicorn.Server, running: "asyncio.Task[None]") -> None:
    server.should_exit = True
    await running


@pytest.mark.parametrize("size", ["laptop", "phone"])
@in_browser
async def test_every_view_loads_without_an_error_asks_no_other_host_and_fits_its_width(
    site: Site, size: str
) -> None:
    scheme, viewport = ("light", LAPTOP) if size == "laptop" else ("dark", PHONE)
    async with site.page(viewport=viewport, color_scheme=scheme) as seen:
        for view, title in VIEWS.items():
            await seen.page.goto(f"{site.url}/dashboard#{view}")
            await expect(seen.page.locator("h1")).to_have_text(title)
            await expect(seen.page.locator("main .card, main .rows > li, main .tile").first).to_be_visible()
            width = await seen.page.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"], f"{view} is {width} wide"
        assert not seen.errors
        assert {urlsplit(url).netloc for url in seen.asked} == {urlsplit(site.url).netloc}
        assert f"{site.url}/v1/latent/timeline?window=hour" in seen.asked
        ground = await seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        bright = int(re.findall(r"\d+", ground)[0]) > 128
        assert bright == (scheme == "light")


@in_browser
async def test_the_chosen_colours_stay(site: Site) -> None:
    async with site.page() as seen:
        await seen.page.get_by_role("button", name="Use dark colours").click()
        await seen.page.reload()
        await expect(seen.page.locator("html")).to_have_attribute("data-theme", "dark")
        await expect(seen.page.get_by_role("button", name="Use light colours")).to_be_visible()
        assert not seen.errors


@in_browser
async def test_colours_follow_the_system_until_some_are_chosen(site: Site) -> None:
    async with site.page() as seen:
        await seen.page.emulate_media(color_scheme="dark")
        await expect(seen.page.get_by_role("button", name="Use light colours")).to_be_visible()
        await expect(seen.page.locator("html")).to_have_attribute("data-theme", "dark")
        await seen.page.emulate_media(color_scheme="light")
        await seen.page.get_by_role("button", name="Use dark colours").click()
        await seen.page.emulate_media(color_scheme="dark")
        await seen.page.emulate_media(color_scheme="light")
        await expect(seen.page.locator("html")).to_have_attribute("data-theme", "dark")
        assert not seen.errors


@in_browser
async def test_what_happens_arrives_by_itself_while_somebody_looks(site: Site) -> None:
    async with site.page() as seen:
        await seen.page.clock.install()
        await seen.page.reload()
        tile = seen.page.locator(".tile", has_text="Requests, last hour").locator(".value")
        await expect(tile).to_have_text(re.compile(r"\d+"))
        before = int(await tile.text_content() or "")
        await site.served.chat("sum of what came later")
        await site.served.gateway.traces.drain()
        await seen.page.evaluate(HIDE)
        asked = len(seen.asked)
        await seen.page.clock.run_for(60_000)
        assert len(seen.asked) == asked, "nobody looks"
        await expect(tile).to_have_text(str(before))
        await seen.page.evaluate("window.away = false")
        await seen.page.clock.run_for(6_000)
        await expect(tile).to_have_text(str(before + 1))
        assert not seen.errors


HIDE = "window.away = true; Object.defineProperty(document, 'hidden', { get: () => window.away });"
"""Lets a page take itself for hidden, as behind another tab."""


@in_browser
async def test_a_night_is_started_by_a_button_and_its_progress_is_shown_as_it_goes(site: Site) -> None:
    log = NightLog(site.served.gateway.state)
    async with site.page("nights") as seen:
        await seen.page.get_by_role("button", name="Start a night").click()
        await expect(seen.page.get_by_text("Skipped")).to_be_visible()  # of so few memories
        night = log.create(site.served.gateway.space, "api")
        night = log.update(replace(night, state="running", phase="train", done=3, total=8, message="step 3"))
        await seen.page.reload()
        await expect(seen.page.get_by_text("A night is under way")).to_be_visible()
        await expect(seen.page.get_by_role("button", name="Start a night")).to_be_disabled()
        await expect(seen.page.get_by_text("step 3 (3 of 8)")).to_be_visible()
        night = log.update(replace(night, done=7, message="step 7"))
        await expect(seen.page.get_by_text("step 7 (7 of 8)")).to_be_visible()
        cluster = {"row": 0, "examples": 20, "like": "four", "standing": "serves", "n": 12, "mean": 0.3}
        evidence = {
            "clusters": [cluster | {"e_value": 31.5, "e_against": 0.1, "baseline": 0.5, "candidate": 0.8}]
        }
        log.update(replace(night, state="promoted", version="v2", evidence=evidence))
        await expect(seen.page.get_by_text("31 to 1 that it helps, after 12 comparisons.")).to_be_visible()
        for number in range(30):
            one = log.create(site.served.gateway.space, "api")
            log.update(replace(one, state="failed", error=f"for a test, {number}"))
        await seen.page.reload()
        nights = seen.page.locator(".timeline > li")
        await expect(nights).to_have_count(25)
        await seen.page.get_by_role("button", name="Older").click()
        await expect(nights).to_have_count(7)
        await expect(seen.page.get_by_role("button", name="Older")).to_have_count(0)
        await seen.page.get_by_role("button", name="Newer").click()
        await expect(nights).to_have_count(25)
        assert not seen.errors


@in_browser
async def test_an_episode_opens_by_a_click_on_the_map_and_by_keyboard_and_is_forgotten_after_a_question(
    site: Site,
) -> None:
    async with site.page("memory") as seen:
        canvas = seen.page.locator("canvas")
        await expect(canvas).to_be_visible()
        at = await canvas.evaluate(COLOURED)
        await canvas.hover(position=at)
        await expect(seen.page.locator(".bubble")).to_contain_text("number")
        await canvas.click(position=at)
        dialog = seen.page.get_by_role("dialog", name="Episode", exact=True)
        await expect(dialog.locator("dd").first).to_have_text(re.compile(r"^(sum|colour|river) "))
        await seen.page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        listed, all_of_them = seen.page.locator(".episodes li"), len(TOPICS) * 3
        await expect(listed).to_have_count(all_of_them)
        kind = seen.page.get_by_label("Kind of request")
        await kind.select_option("v2/1")
        await expect(listed).to_have_count(all_of_them // len(TOPICS))
        await expect(listed.first).to_contain_text(f"{TOPICS[1]} number")
        await kind.select_option("")
        await expect(listed).to_have_count(all_of_them)
        await seen.page.locator(".episodes button").first.focus()
        await seen.page.keyboard.press("Enter")
        await expect(dialog.locator("code")).to_be_visible()
        name = await dialog.locator("code").text_content()
        assert name
        store = site.served.gateway.store
        await dialog.get_by_role("button", name="Forget it").click()
        asked = seen.page.get_by_role("dialog", name="Forget this episode?")
        await asked.get_by_role("button", name="Cancel").click()
        assert store.get(name) is not None
        await dialog.get_by_role("button", name="Forget it").click()
        await asked.get_by_role("button", name="Forget it").click()
        await expect(seen.page.get_by_role("dialog", name="Forgotten")).to_be_visible()
        assert store.get(name) is None
        assert not seen.errors


COLOURED = """canvas => {
    const { width, height } = canvas, dots = window.devicePixelRatio;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    for (let at = 0; at < data.length; at += 4) {
        const [red, green, blue] = data.slice(at, at + 3);
        if (data[at + 3] === 255 && Math.max(red, green, blue) - Math.min(red, green, blue) > 60)
            return { x: (at / 4 % width) / dots, y: Math.floor(at / 4 / width) / dots + 3 };
    }
}"""
"""Finds a point on the map: what has a colour is no text and no ground."""


@in_browser
async def test_activating_and_rolling_back_ask_and_then_act(site: Site) -> None:
    registry = site.served.gateway.registry
    async with site.page("priors") as seen:
        await expect(seen.page.locator(".rows > li")).to_have_count(2)
        button = seen.page.get_by_role("button", name="Activate")
        asked = seen.page.get_by_role("dialog", name="Answer with v1?")
        await button.click()
        await asked.get_by_role("button", name="Cancel").click()
        await expect(asked).to_be_hidden()
        assert (registry.active(), registry.pinned()) == ("v2", False)
        await button.click()
        await asked.get_by_role("button", name="Activate").click()
        await expect(seen.page.locator(".rows > .active .version")).to_have_text("v1")
        assert (registry.active(), registry.pinned()) == ("v1", True)
        await seen.page.get_by_role("button", name="Release").click()
        await seen.page.get_by_role("dialog").get_by_role("button", name="Release").click()
        await expect(seen.page.get_by_role("button", name="Release")).to_have_count(0)
        assert (registry.active(), registry.pinned()) == ("v1", False)
        await seen.page.get_by_role("button", name="Roll back").click()
        await seen.page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        await expect(seen.page.locator(".rows > .active .version")).to_have_text("v2")
        assert registry.active() == "v2"
        assert not seen.errors


@in_browser
async def test_turning_steering_off_asks_and_then_acts(site: Site) -> None:
    async def steering() -> str:
        (one,) = (await site.served.http.get("/v1/experiments")).json()["data"]
        return str(one["switch"]["steering"])

    async with site.page() as seen:
        for label, badge, now in (("off", "Steering is off", "off"), ("on", "Steering is on", "on")):
            await seen.page.get_by_role("button", name=f"Turn steering {label}").click()
            asked = seen.page.get_by_role("dialog")
            assert await steering() != now
            await asked.get_by_role("button", name=f"Turn steering {label}").click()
            await expect(seen.page.get_by_text(badge)).to_be_visible()
            assert await steering() == now
        assert not seen.errors


@in_browser
async def test_a_thumb_is_feedback(site: Site) -> None:
    async with site.page("traces") as seen:
        thumb = seen.page.get_by_role("button", name="Bad answer").first
        await thumb.click()
        await expect(thumb).to_have_attribute("aria-pressed", "true")
        (trace,) = (await site.served.http.get("/v1/latent/traces?limit=1")).json()["data"]
        assert trace["rating"] == 0
        assert not seen.errors


@in_browser
async def test_a_request_is_forgotten_after_a_question(site: Site) -> None:
    await site.served.chat("river that nobody may know")
    await site.served.gateway.traces.drain()
    async with site.page("traces") as seen:
        asked = seen.page.get_by_role("button", name="river that nobody may know")
        await asked.click()
        dialog = seen.page.get_by_role("dialog", name="Trace", exact=True)
        await dialog.get_by_role("button", name="Forget it").click()
        question = seen.page.get_by_role("dialog", name="Forget this request?")
        await question.get_by_role("button", name="Forget it").click()
        told = seen.page.get_by_role("dialog", name="Forgotten")
        await told.get_by_role("button", name="Close").last.click()
        await expect(told).to_be_hidden()
        await expect(asked).to_have_count(0)
        assert not seen.errors


@in_browser
async def test_without_a_key_or_with_a_wrong_one_there_is_a_sign_in_and_nothing_else(site: Site) -> None:
    async with site.page(key=None) as seen:
        field = seen.page.get_by_label("API key")
        await expect(field).to_be_visible()
        await field.fill("wrong")
        await field.press("Enter")
        await expect(seen.page.get_by_text("The server does not take this key.")).to_be_visible()
        await expect(seen.page.locator("nav")).to_have_count(0)
        await field.fill(KEY)
        await field.press("Enter")
        await expect(seen.page.locator("h1")).to_have_text("Overview")
        await seen.page.reload()
        await expect(seen.page.locator("h1")).to_have_text("Overview")
        await seen.page.get_by_role("button", name="Sign out").click()
        await expect(field).to_be_visible()


@in_browser
async def test_a_key_is_made_shown_once_and_revoked(site: Site) -> None:
    async with site.page("keys") as seen:
        await seen.page.get_by_role("button", name="Make a key").click()
        await seen.page.get_by_label("Name, for people").fill("a newsroom")
        await seen.page.get_by_role("button", name="Make it").click()
        secret = await seen.page.get_by_label("Secret", exact=True).input_value()
        headers = {"authorization": f"Bearer {secret}"}
        assert (await site.served.http.get("/v1/models", headers=headers)).status_code == 200
        await seen.page.get_by_role("button", name="I have it").click()
        await seen.page.get_by_role("button", name="Revoke").click()
        await seen.page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        await expect(seen.page.get_by_text("revoked")).to_be_visible()
        assert secret not in await seen.page.content()
        assert not seen.errors


@in_browser
async def test_evidence_is_said_as_odds_and_prompts_by_what_tells_them_apart(site: Site) -> None:
    async with site.page("keys") as seen:
        said = await seen.page.evaluate(
            """async () => {
                const { differing, odds, shortened } = await import("./dashboard/words.js");
                const of = (n, e_value, e_against) => odds({ n, e_value, e_against });
                const headline = (what) => `Classify the news headline: ${what}`;
                return {
                    odds: [of(0, 1, 1), of(1, 1.5, 0.7), of(12, 31.5, 0.1), of(9, 0.1, 25), of(99, 1e9, 0)],
                    differing: [differing(["cup", "budget"].map(headline)), differing(["a cup", "a bus"])],
                    shortened: ["as it is", "one two three four five six 7"].map((it) => shortened(it, 20)),
                };
            }"""
        )
    assert said["odds"] == [
        "Not compared yet.",
        "No telling yet, after 1 comparison.",
        "31 to 1 that it helps, after 12 comparisons.",
        "25 to 1 that it harms, after 9 comparisons.",
        "More than a million to 1 that it helps, after 99 comparisons.",
    ]
    assert said["differing"] == [["… cup", "… budget"], ["a cup", "a bus"]]
    assert said["shortened"] == ["as it is", "one two … six 7"]


def test_words_can_be_read_in_both_lights() -> None:
    style = (FOLDER / "style.css").read_text()
    blocks = re.findall(r'(?m)^:root(?:\[data-theme="dark"\])? \{(.*?)^\}', style, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        pairs = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("card", "ground")]
        pairs += [(name, f"{name}-soft") for name in ("accent", "good", "wait", "bad")]
        pairs += [("on-accent", "accent"), ("bad", "card"), ("card", "bad"), ("ink", "accent-soft")]
        for ink, ground in pairs:
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        for name in ("control", "steered", "unsteered", "effort-low", "effort-medium", "effort-high"):
            assert contrast(colours[name], colours["card"]) >= 3, name


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
