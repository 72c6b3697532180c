"""Long texts: refused by their size where they cannot fit, and else read beside the event loop."""

import asyncio
import threading

import pytest

from millstream.api.server.text_pool import TextPool
from millstream.backends.fake import CharacterTokenizer, FakeBackend
from millstream.engine import ModelConfig

CHAT, TEXT, ANSWER, EMBED, COUNT = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/tokenize",
)
LONG = "x" * 300_000


class Spy(CharacterTokenizer):
    """Remembers how long the texts were, and in which threads."""

    chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"

    def __init__(self):
        super().__init__(200)
        self._templates._sources["default"] = self.chat_template
        self.sizes = []
        self.threads = set()
        self.gate = threading.Event()
        self.gate.set()
        self.inside = self.most_inside = 0
        self._lock = threading.Lock()

    def encode(self, text, *, add_special_tokens=True):
        if len(text) > 1000:
            with self._lock:
                self.sizes.append(len(text))
                self.threads.add(threading.current_thread().name)
                self.inside += 1
                self.most_inside = max(self.most_inside, self.inside)
            assert self.gate.wait(60)
            with self._lock:
                self.inside -= 1
        return super().encode(text, add_special_tokens=add_special_tokens)


@pytest.fixture
async def served(serve):
    spy = Spy()
    backend = FakeBackend(vocab_size=200, max_length=8192, tokenizer=spy)
    model = ModelConfig(model="m", backend=backend, max_length=8192, num_blocks=600, max_num_seqs=8)
    async with serve(model) as server:
        server.spy = spy
        yield server


def body_of(path, text, **more):
    if path == CHAT:
        return {"messages": [{"role": "user", "content": text}], "max_tokens": 1, **more}
    if path == ANSWER:
        return {"input": text, "max_output_tokens": 1, **more}
    return {"prompt": text, **({} if path == COUNT else {"max_tokens": 1}), **more}


@pytest.mark.parametrize("path", [CHAT, TEXT, ANSWER])
async def test_what_cannot_fit_is_refused_before_it_is_made_tokens_of(served, path):
    response = await served.post(path, **body_of(path, LONG))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "300000" in error["message"] and "8191" in error["message"]
    assert served.spy.sizes == []


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_text_of_which_the_end_is_kept_fits(served, path):
    response = await served.post(path, **body_of(path, LONG, truncate_prompt_tokens=20))
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] == 20
    assert served.spy.sizes == [300_000]


@pytest.mark.parametrize("path", [CHAT, TEXT, ANSWER, COUNT])
async def test_a_long_text_is_made_tokens_of_in_a_thread_of_the_pool(served, path):
    response = await served.post(path, **body_of(path, "x" * 5000))
    assert response.status_code == 200, response.text
    assert served.spy.sizes == [5000]
    assert all(name.startswith("text") for name in served.spy.threads)


async def test_texts_wait_for_each_other_while_the_server_answers(served):
    served.spy.gate.clear()
    waiting = [asyncio.create_task(served.post(COUNT, prompt="x" * 5000)) for _ in range(6)]
    try:
        async with asyncio.timeout(30):
            while served.spy.inside < 1:
                await asyncio.sleep(0.002)
        assert (await served.client.get("/health")).status_code == 200
        short = await served.post(TEXT, prompt="short", max_tokens=2)
        assert short.status_code == 200
    finally:
        served.spy.gate.set()
    answers = await asyncio.gather(*waiting)
    assert [answer.json()["count"] for answer in answers] == [5000] * 6
    assert served.spy.most_inside == 1


async def test_many_messages_are_checked_each(served):
    messages = [{"role": "user", "content": "hi"}] * 5000
    response = await served.post(CHAT, messages=[*messages, {"role": "user", "content": 7}])
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages[5000].content"), error
    assert error["message"].startswith("messages[5000].content is 7; allowed: ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"prompt": "' + b"x" * 50_000 + b'", }', "the body is no valid JSON: "),
        (b'{"prompt": "' + b"x" * 50_000 + b'"', "the body is no valid JSON: "),
        (b"[" * 100_000, "the body is no valid JSON: its values are nested too deep"),
        (b'{"prompt": "' + b"x" * 50_000 + b'\xff"}', "the body is no valid JSON: "),
        (b'["' + b"x" * 50_000 + b'"]', "the body is "),
    ],
    ids=["comma", "cut off", "deep", "no UTF-8", "a list"],
)
async def test_a_large_body_that_cannot_be_read_is_refused(served, body, message):
    response = await served.client.post(TEXT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


async def test_a_text_that_waits_can_be_given_up():
    pool, gate = TextPool(threads=1), threading.Event()
    first = asyncio.create_task(pool.run(gate.wait, 60))
    second = asyncio.create_task(pool.run(list))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    assert await first
    pool.close()
    with pytest.raises(RuntimeError):
        await pool.run(list)
