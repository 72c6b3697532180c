"""The page at `/`: its files and the state it reads over HTTP, and the page itself in a browser."""

import asyncio
import json
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import uvicorn

from millstream.api.server.app import create_app
from millstream.api.server.config import ServerConfig
from millstream.api.server.keys import ApiKey
from millstream.api.server.metrics import ServerMetrics
from millstream.api.server.service import ModelService
from millstream.backends.fake import FakeBackend
from millstream.backends.registry import inspect_model
from millstream.engine import AsyncEngine, ModelConfig, RequestOptions, SamplingParams

from ...waiting import HANG_SECONDS, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

STATIC = Path(__file__).parents[3] / "api" / "server" / "static"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KEYS = (ApiKey(name="ann", key="key-of-ann"), ApiKey(name="bob", key="key-of-bob"))
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
WAIT = 1000 * HANG_SECONDS
"""Milliseconds that the page may take for anything on a busy machine."""


@pytest.fixture(scope="module")
def words():
    """Vocabulary size and tokenizer of the bundled model."""
    backend, info = inspect_model("pyhelp")
    return {"vocab_size": info.vocab_size, "tokenizer": backend.load_tokenizer(info)}


@pytest.fixture
def serve(words):
    @asynccontextmanager
    async def serving(*, step_time=0.0, max_num_seqs=8, **config):
        """(URL, engine) of a server with one fake model whose every token is drawn out of pyhelp's."""
        config = ServerConfig(**config)
        async with AsyncEngine() as engine:
            metrics = ServerMetrics(engine, config)
            service = ModelService(engine, metrics)
            backend = FakeBackend(**words, step_time=step_time)
            model = ModelConfig(
                model="fake", backend=backend, max_num_seqs=max_num_seqs, num_blocks=200, max_length=1000
            )
            await service.load(model)
            app = create_app(service, config, metrics)
            settings = uvicorn.Config(
                app, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=1
            )
            server = uvicorn.Server(settings)
            task = asyncio.create_task(server.serve())
            await until(lambda: server.started)
            port = server.servers[0].sockets[0].getsockname()[1]
            try:
                yield f"http://127.0.0.1:{port}/", engine
            finally:
                server.should_exit = True
                await task

    return serving


@pytest_asyncio.fixture(loop_scope="module")
async def client(serve):
    async with serve() as (url, _), httpx.AsyncClient(base_url=url) as client:
        yield client


# The files


async def test_page_and_every_file_it_names_are_served_with_their_types(client):
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    types = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
    named = set(re.findall(r'(?:src|href)="static/([^"]+)"', page.text))
    for script in STATIC.glob("*.js"):
        named.update(re.findall(r'from "\./([^"]+)"', script.read_text()))
    assert named == {path.name for path in STATIC.iterdir()} - {"index.html"}
    for name in named:
        file = await client.get(f"/static/{name}")
        assert file.status_code == 200, name
        assert file.headers["content-type"] == types[name.rpartition(".")[2]]
        assert file.content == (STATIC / name).read_bytes()


async def test_page_may_load_nothing_from_elsewhere(client):
    policy = (await client.get("/")).headers["content-security-policy"]
    sources = dict(part.split(" ", 1) for part in policy.split("; "))
    assert sources.pop("default-src") == "'none'"
    assert {sources[kind] for kind in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.[a-z]", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text), (
            path.name
        )


async def test_a_file_that_has_not_changed_is_not_sent_again(client):
    first = await client.get("/static/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get(
        "/static/app.js", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    )
    assert (again.status_code, again.content) == (304, b"")
    changed = await client.get("/static/app.js", headers={"If-None-Match": '"other"'})
    assert changed.status_code == 200


@pytest.mark.parametrize("name", ["nope.js", "..%2Fapp.py", "..%2F..%2F__init__.py", "index.html/"])
async def test_only_packaged_files_are_served(client, name):
    answer = await client.get(f"/static/{name}")
    assert answer.status_code in (404, 307)
    assert b"import" not in answer.content


# The state


async def test_state_tells_the_model_and_its_requests(serve):
    async with serve(step_time=0.01) as (url, engine), httpx.AsyncClient(base_url=url) as client:
        idle = (await client.get("engine/state")).json()
        assert (idle["state"], idle["requests"]) == ("Running", [])
        assert idle["blocks"] == {"blocks_per_cell": 1, "runs": [[200, 0, 0]]}
        await engine.start_request("fake", [5] * 40, SamplingParams(max_new_tokens=900))
        await until(lambda: engine.snapshot("fake").requests)
        busy = (await client.get("engine/state?model=fake")).json()
        (row,) = busy["requests"]
        assert (row["prompt_tokens"], row["tenant"]) == (40, "")
        assert busy["stats"]["held_blocks"] == sum(cells * held for cells, held, _ in busy["blocks"]["runs"])
        assert (await client.get("engine/state")).headers["cache-control"] == "no-store"


async def test_state_of_a_model_that_is_not_there_is_refused(client):
    answer = await client.get("/engine/state?model=nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_other_tenants_requests_are_anonymous_unless_to_the_admin(serve):
    async with (
        serve(step_time=0.01, api_keys=KEYS, admin_key="key-of-admin") as (url, engine),
        httpx.AsyncClient(base_url=url) as client,
    ):
        for tenant in ("ann", "bob"):
            await engine.start_request(
                "fake", [5] * 20, SamplingParams(max_new_tokens=900), RequestOptions(tenant=tenant)
            )

        async def tenants(key):
            answer = await client.get("engine/state", headers={"Authorization": f"Bearer {key}"})
            assert all(row["state"] for row in answer.json()["requests"])
            return [row["tenant"] for row in answer.json()["requests"]]

        await until(lambda: len(engine.snapshot("fake").requests) == 2)
        assert await tenants("key-of-ann") == ["ann", None]
        assert await tenants("key-of-bob") == [None, "bob"]
        assert await tenants("key-of-admin") == ["ann", "bob"]
        assert (await client.get("engine/state")).status_code == 401
        assert (await client.get("/")).status_code == 200


# In a browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
def open_page(browser):
    @asynccontextmanager
    async def opened(url, *, viewport=DESKTOP, ready="#model:enabled", **options):
        """The page, whose every complaint and every request to elsewhere fails the test."""
        context = await browser.new_context(viewport=viewport, **options)
        page = await context.new_page()
        page.set_default_timeout(WAIT)
        complaints = []
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda told: told.type == "error" and complaints.append(told.text))
        page.on(
            "request", lambda sent: sent.url.startswith(url) or complaints.append(f"elsewhere: {sent.url}")
        )
        await page.goto(url)
        await page.wait_for_selector(ready)
        yield page
        # What the server refuses, browsers log by themselves.
        refusals = re.compile("the server responded with a status of 4")
        assert [told for told in complaints if not refusals.search(told)] == []
        await context.close()

    return opened


async def ask(page, question):
    await page.fill("#prompt", question)
    await page.press("#prompt", "Enter")


async def answered(page, number=1, state="done"):
    view = page.locator(".answer").nth(number - 1)
    await page.wait_for_selector(f".answer[data-state={state}] >> nth={number - 1}")
    return view


async def set_up(page, **fields):
    await page.click("#open-settings")
    for name, value in fields.items():
        await page.fill(f"#settings [name={name}]", value)
    await page.click("#settings .primary")


def stream(*deltas, usage=None, last=("data: [DONE]",)):
    """Body of a streamed answer."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if usage is not None:
        chunks.append({"choices": [], "usage": usage})
    return "\n\n".join([*(f"data: {json.dumps(chunk)}" for chunk in chunks), *last]) + "\n\n"


async def answer_with(page, body, **options):
    async def fulfil(route):
        await route.fulfill(body=body, content_type="text/event-stream", **options)

    await page.route("**/v1/chat/completions", fulfil)


async def test_chat_streams_and_tells_what_an_answer_took(serve, open_page):
    async with serve() as (url, _), open_page(url) as page:
        await set_up(page, max_completion_tokens="12", seed="7", temperature="0.5")
        await ask(page, "What does os.path.join do?")
        view = await answered(page)
        assert await page.locator(".bubble").inner_text() == "What does os.path.join do?"
        first = await view.locator(".text").inner_text()
        took = await view.locator(".took").inner_text()
        assert first
        assert re.match(r"first token \d+ ms .*\b12 tokens\b.*ended at the token limit", took), took

        await view.get_by_text("Regenerate").click()
        view = await answered(page)
        assert await view.locator(".text").inner_text() == first
        assert re.search(r"\d+ of \d+ prompt tokens cached", await view.locator(".took").inner_text())

        await ask(page, "And then?")
        await answered(page, 2)
        await page.click("#new-chat")
        assert await page.locator(".answer").count() == 0
        assert await page.locator("#welcome").is_visible()


@pytest.mark.parametrize("how", ["button", "escape"])
async def test_stop_ends_the_work_and_keeps_the_text(serve, open_page, how):
    async with serve(step_time=0.01) as (url, engine), open_page(url) as page:
        await ask(page, "Go on and on")
        await page.wait_for_selector(".answer .text > *")
        assert engine.stats("fake").running == 1
        await (page.click("#stop") if how == "button" else page.keyboard.press("Escape"))
        view = await answered(page)
        assert "stopped" in await view.locator(".took").inner_text()
        assert await view.locator(".text").inner_text()
        await until(lambda: not engine.snapshot("fake").requests)
        assert await page.locator("#send").is_visible()


async def test_engine_is_shown_while_it_works(serve, open_page):
    async with serve(step_time=0.01, max_num_seqs=2) as (url, engine), open_page(url) as page:
        await page.get_by_text("Idle").wait_for()
        params = SamplingParams(max_new_tokens=900)
        handles = [(await engine.start_request("fake", [i] * 40, params))[0] for i in range(3)]
        await page.wait_for_selector("#rows > li[data-state=decode] >> nth=1")
        await page.wait_for_selector("#rows > li[data-state=queued]")
        assert await page.locator("#engine-status").inner_text() == "Working"
        assert await page.locator("#running").inner_text() == "2"
        assert await page.locator("#waiting").inner_text() == "running + 1 waiting"
        assert int(await page.locator("#held").inner_text()) >= 6
        assert "200 blocks held" in await page.locator("#map").get_attribute("aria-label")
        row = await page.locator("#rows > li").first.inner_text()
        assert "40 prompt" in row
        for handle in handles:
            engine.stop_request("fake", handle)
        await page.get_by_text("Nothing is running.").wait_for()
        await page.get_by_text("Idle").wait_for()


async def test_key_is_asked_for_and_kept_in_the_tab_alone(serve, open_page):
    async with serve(api_keys=KEYS) as (url, _), open_page(url, ready="#settings[open]") as page:
        await page.fill("#settings [name=key]", "wrong")
        await page.keyboard.press("Enter")
        await page.get_by_text("The API key is not known here.").wait_for()
        await page.wait_for_selector("#settings[open]")
        await page.fill("#settings [name=key]", "key-of-ann")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#model:enabled")
        await ask(page, "Hello")
        await page.wait_for_selector(".answer .text > *")
        assert await page.evaluate("sessionStorage.getItem('millstream.key')") == "key-of-ann"
        assert "key-of-ann" not in await page.evaluate("JSON.stringify(localStorage)")


async def test_faults_are_told_in_one_sentence(serve, open_page):
    async with serve() as (url, _), open_page(url) as page:
        await page.evaluate("localStorage.setItem('millstream.parameters', '{\"temperature\": \"9\"}')")
        await page.reload()
        await ask(page, "Hello")
        view = await answered(page, state="failed")
        assert (await view.locator(".fault").inner_text()).startswith("Temperature: ")
        await set_up(page, temperature="")
        await ask(page, "word " * 2000)
        view = await answered(page, 2, state="failed")
        fault = await view.locator(".fault").inner_text()
        assert re.fullmatch(r"[A-Z][^\n]+1000[^\n]*\.", fault), fault
        await answer_with(page, stream({"content": "So"}, last=['data: {"error": {"message": "it broke"}}']))
        await ask(page, "Hello")
        view = await answered(page, 3, state="failed")
        assert await view.locator(".fault").inner_text() == "It broke."
        assert await view.locator(".text").inner_text() == "So"


async def test_busy_server_says_when_to_try_again(serve, open_page):
    async with serve() as (url, _), open_page(url) as page:
        refusal = json.dumps({"error": {"message": "too much is queued"}})
        await answer_with(page, refusal, status=429, headers={"Retry-After": "3"})
        await ask(page, "Hello")
        view = await answered(page, state="failed")
        assert await view.locator(".fault").inner_text() == "Too much is queued; try again in 3 s."


async def test_what_a_model_writes_stays_text(serve, open_page):
    source = (
        '<img src=x onerror="document.title=1"> **bold** and `a < b`, f(*args, **kwargs)\n\n'
        "```python\nprint('<b>')\n```\n\n1. one\n2. two\n   - nested\n\n"
        "# Head\n\n<script>document.title=2</script>"
    )
    pieces = [{"content": source[at : at + 7]} for at in range(0, len(source), 7)]
    async with serve() as (url, _), open_page(url) as page:
        await answer_with(page, stream(*pieces))
        await ask(page, "Hello")
        view = await answered(page)
        text = view.locator(".text")
        assert await text.locator("p").first.inner_text() == (
            '<img src=x onerror="document.title=1"> bold and a < b, f(*args, **kwargs)'
        )
        assert await text.locator("strong").all_inner_texts() == ["bold"]
        assert await text.locator("pre").inner_text() == "print('<b>')"
        assert await text.locator("figcaption span").inner_text() == "python"
        assert await text.locator("ol > li").count() == 2
        assert await text.locator("ol > li > ul > li").inner_text() == "nested"
        assert await text.locator("h3").inner_text() == "Head"
        assert await text.locator("img, script, b").count() == 0
        assert await page.title() == "Millstream"


async def test_reasoning_is_folded_and_not_sent_back(serve, open_page):
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    sent = []
    async with serve() as (url, _), open_page(url) as page:
        page.on("request", lambda request: request.method == "POST" and sent.append(request.post_data_json))
        await answer_with(page, stream({"reasoning_content": "Hm, "}, {"content": "Four."}, usage=usage))
        await set_up(page, system="Be brief.")
        await ask(page, "2 + 2?")
        view = await answered(page)
        assert not await view.get_by_text("Hm,").is_visible()
        await view.get_by_text("Thoughts").click()
        assert await view.get_by_text("Hm,").is_visible()
        assert "4 tokens · 8 of 9 prompt tokens cached" in await view.locator(".took").inner_text()
        await ask(page, "Sure?")
        await answered(page, 2)
    assert sent[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Sure?"},
    ]


async def test_phone_shows_one_view_at_a_time_and_nothing_sticks_out(serve, open_page):
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    async with serve(step_time=0.01) as (url, engine), open_page(url, **phone) as page:
        assert await page.locator("#prompt").is_visible()
        assert not await page.locator("#map").is_visible()
        await engine.start_request(
            "fake", [5] * 40, SamplingParams(max_new_tokens=900), RequestOptions(tenant="t" * 60)
        )
        await page.click("[data-show=engine]")
        await page.wait_for_selector("#rows > li")
        assert not await page.locator("#prompt").is_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert await page.evaluate("document.querySelector('#engine').scrollWidth") == PHONE["width"]


async def test_everything_is_reached_with_the_keyboard(serve, open_page):
    async with serve() as (url, _), open_page(url) as page:
        await page.locator("#theme").focus()
        before = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        await page.keyboard.press("Enter")
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") != before
        await page.keyboard.press("/")
        assert await page.evaluate("document.activeElement.id") == "prompt"
        await page.keyboard.type("One")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("Two")
        assert await page.input_value("#prompt") == "One\nTwo"
        reached = set()
        for _ in range(20):
            await page.keyboard.press("Tab")
            reached.add(await page.evaluate("document.activeElement.id"))
        assert {"send", "model", "new-chat", "open-settings", "theme"} <= reached
