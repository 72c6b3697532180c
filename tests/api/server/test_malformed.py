"""Malformed requests: each gets one clear 4xx in OpenAI's envelope, and disturbs nothing."""
# ruff: noqa: E501 (a table has one line per row)

import asyncio
import json
import logging
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from millstream.api.server.config import ServerConfig
from millstream.engine import ModelConfig

from ...waiting import HANG_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, TEXT, EMBED, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"
QUESTION = [{"role": "user", "content": "What does os.path.join do?"}]
ADMIN = {"Authorization": "Bearer secret"}
JSON = "application/json"
MAX_BODY = 1 << 20


@dataclass(frozen=True)
class Bad:
    """A request, and what is to be said about it: `param`, and some words of the message."""

    name: str
    path: str
    body: object
    """Bytes are sent as they are, everything else as JSON."""
    param: str | None
    words: str
    status: int = 400
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        return self.name


def chat(name, words, param, /, **fields):
    return Bad(f"chat: {name}", CHAT, {"messages": QUESTION, **fields}, param, words)


def says(name, words, param, message):
    """A conversation with this one message."""
    return Bad(f"message: {name}", CHAT, {"messages": [message]}, param, words)


def text(name, words, param, /, **fields):
    return Bad(f"completion: {name}", TEXT, {"prompt": "os", **fields}, param, words)


def embed(name, words, param, /, **fields):
    return Bad(f"embedding: {name}", EMBED, {"input": "os", **fields}, param, words)


def response(name, words, param, /, **fields):
    return Bad(f"response: {name}", RESPONSE, {"input": "os", **fields}, param, words)


def raw(name, words, body, param=None, /, path=CHAT, **options):
    return Bad(f"body: {name}", path, body, param, words, **options)


def load(name, words, param, status=400, headers=ADMIN, /, **fields):
    return Bad(f"load: {name}", "/load", fields, param, words, status, headers=headers)


def with_field(text):
    """The bytes of a good conversation with one more field."""
    return json.dumps({"messages": QUESTION})[:-1].encode() + b", " + text.encode() + b"}"


HALF = "half of a surrogate pair"
FORMS = (
    "non-empty text, a non-empty list of integers from 0 to 2147483647, a non-empty list of non-empty "
    "texts, or a non-empty list of non-empty lists of integers"
)
LONG = [{"role": "user", "content": "word " * 600}]

BODIES = [
    raw("cut off", "no valid JSON: Expecting value at character 13", b'{"messages":['),
    raw("missing", "the body is missing; allowed: a JSON object", b""),
    raw("a list", "the body is []; allowed: a JSON object", b"[]"),
    raw("null", "the body is null; allowed: a JSON object", b"null"),
    raw("no JSON", "no valid JSON", b"messages=hello"),
    raw("two values", "no valid JSON: Extra data at character 3", b"{} {}"),
    raw("single quotes", "no valid JSON", b"{'messages': []}"),
    raw("a comma too many", "no valid JSON", b'{"messages": [],}'),
    raw("Latin-1", "it is no UTF-8", '{"messages": "ä"}'.encode("latin-1")),
    raw("bytes", "it is no UTF-8", b"\xff\xfe{"),
    raw("compressed", "no valid JSON", b"\x1f\x8b\x08\x00", headers={"Content-Encoding": "gzip"}),
    raw("a control character", "Invalid control character", b'{"messages": "\x00"}'),
    raw("NaN", "temperature is NaN; allowed: a number from 0 to 100", with_field('"temperature": NaN'), "temperature"),
    raw("Infinity", "temperature is Infinity", with_field('"temperature": Infinity'), "temperature"),
    raw("1e400", "top_p is Infinity; allowed: a number from 0 to 1", with_field('"top_p": 1e400'), "top_p"),
    raw("5000 digits", "too many digits", with_field('"seed": ' + "9" * 5000)),
    raw("deep lists", "nested too deep", b'{"messages": ' + b"[" * 100_000),
    raw("deep objects", "metadata.a is {", with_field('"metadata": ' + '{"a": ' * 400 + "1" + "}" * 400), "metadata.a"),
    raw("half a character in a message", HALF, rb'{"messages":[{"role":"user","content":"\ud800"}]}', "messages[0].content"),
    raw("half a character in a role", HALF, rb'{"messages":[{"role":"\udfff","content":"x"}]}', "messages[0].role"),
    raw("half a character in a model", HALF, with_field(r'"model": "\ud800"'), "model"),
    raw("half a character in a user", HALF, with_field(r'"user": "\ud800"'), "user"),
    raw("half a character in a salt", HALF, with_field(r'"cache_salt": "\ud800"'), "cache_salt"),
    raw("half a character in a stop", HALF, with_field(r'"stop": ["\ud800"]'), "stop[0]"),
    raw("half a character in a bad word", HALF, with_field(r'"bad_words": ["\ud800"]'), "bad_words[0]"),
    raw("half a character in a key", HALF, with_field(r'"metadata": {"\ud800": "x"}'), "metadata"),
    raw("half a character in a field", "the body has the field", with_field(r'"\ud800": 1')),
    raw("half a character in a prompt", HALF, rb'{"prompt": "\ud800"}', "prompt", path=TEXT),
    raw("half a character in a second prompt", HALF, rb'{"prompt": ["a", "\udc00"]}', "prompt[1]", path=TEXT),
    raw("half a character in an input", HALF, rb'{"input": "\ud800"}', "input", path=EMBED),
    raw("half a character to tokenize", HALF, rb'{"prompt": "\ud800"}', "prompt", path="/tokenize"),
    raw("half a character in an old message", HALF, rb'{"messages":[{"role":"user","content":"\ud800"}]}', "messages[0].content", path="/old/generate"),
    raw("plain text", "allowed: application/json", b"{}", status=415, headers={"Content-Type": "text/plain"}),
    raw("a form", "allowed: application/json", b"a=b", status=415, headers={"Content-Type": "application/x-www-form-urlencoded"}),
    raw("of no type", "allowed: application/json", b"{}", status=415, headers={"Content-Type": ""}),
    raw("too large", f"larger than {MAX_BODY} bytes", b" " * (MAX_BODY + 1), status=413),
]  # fmt: skip

CHATS = [
    Bad("chat: no messages", CHAT, {}, "messages", "messages is missing"),
    chat("empty messages", "messages is []; allowed: a non-empty list of objects", "messages", messages=[]),
    chat("null messages", "messages is null; allowed: a non-empty list of objects", "messages", messages=None),
    chat("messages as text", 'messages is "hi"; allowed: a non-empty list', "messages", messages="hi"),
    chat("a message as text", 'messages[0] is "hi"; allowed: an object', "messages[0]", messages=["hi"]),
    says("no role", "messages[0].role is missing", "messages[0].role", {"content": "x"}),
    says("no content", "messages[0].content is null; allowed: text", "messages[0].content", {"role": "user"}),
    says("unknown role", 'messages[0].role is "king"; allowed: "system"', "messages[0].role", {"role": "king", "content": "x"}),
    says("tool", "tools are not served", "messages[0].role", {"role": "tool", "content": "x"}),
    says("tool calls", "only text is served", "messages[0].tool_calls", {"role": "assistant", "content": "x", "tool_calls": [{}]}),
    says("a number", "messages[0].content is 5; allowed: text or a list", "messages[0].content", {"role": "user", "content": 5}),
    says("no parts", "messages[0].content is []; allowed: text, or at least one part", "messages[0].content", {"role": "user", "content": []}),
    says("an image", '.type is "image_url"; allowed: "text"', "messages[0].content[0].type", {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
    says("a part without text", "content[0].text is missing", "messages[0].content[0].text", {"role": "user", "content": [{"type": "text"}]}),
    says("a part with more", "is not a field of this request", "messages[0].content[1].detail", {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "x", "detail": 1}]}),
    chat("temperature as text", 'temperature is "1"; allowed: a number from 0 to 100', "temperature", temperature="1"),
    chat("temperature as bool", "temperature is true; allowed: a number", "temperature", temperature=True),
    chat("negative temperature", "temperature is -1; allowed: a number from 0", "temperature", temperature=-1),
    chat("huge temperature", "temperature is 1180591620717411303424", "temperature", temperature=2**70),
    chat("top_p over 1", "top_p is 1.5; allowed: a number from 0 to 1", "top_p", top_p=1.5),
    chat("negative top_k", "top_k is -2; allowed: an integer from -1", "top_k", top_k=-2),
    chat("min_p over 1", "min_p is 2; allowed: a number from 0 to 1", "min_p", min_p=2),
    chat("no choice", "n is 0; allowed: an integer from 1 to 128", "n", n=0),
    chat("half a choice", "n is 1.5; allowed: an integer", "n", n=1.5),
    chat("a choice as bool", "n is true; allowed: an integer", "n", n=True),
    chat("too many choices", "n is 129; allowed: an integer from 1 to 128", "n", n=129),
    chat("huge seed", f"seed is {2**70}; allowed: an integer", "seed", seed=2**70),
    chat("presence over 2", "presence_penalty is 3; allowed: a number from -2 to 2", "presence_penalty", presence_penalty=3),
    chat("repetition of 0", "repetition_penalty is 0; allowed: a number from 0.01 to 2", "repetition_penalty", repetition_penalty=0),
    chat("stop of a wrong type", "stop is 1; allowed: non-empty text or a list of non-empty texts", "stop", stop=1),
    chat("empty stop", 'stop is ""; allowed: non-empty text', "stop", stop=""),
    chat("a number to stop at", "stop[1] is 1; allowed: non-empty text", "stop[1]", stop=["a", 1]),
    chat("an empty text to stop at", 'stop[0] is ""; allowed: non-empty text', "stop[0]", stop=[""]),
    chat("no tokens", "max_tokens is 0; allowed: an integer from 1", "max_tokens", max_tokens=0),
    chat("more tokens than the model has", "takes up to 512 tokens", "max_tokens", max_tokens=513),
    chat("more answer than the model has", "max_completion_tokens is 9999", "max_completion_tokens", max_completion_tokens=9999),
    chat("more length than the model has", "max_length is 513; 'pyhelp' allows up to 512", "max_length", max_length=513),
    chat("more than 31 bits", "max_tokens is 2147483648; allowed", "max_tokens", max_tokens=2**31),
    chat("least over most", "min_tokens is 9; allowed: at most max_tokens", "min_tokens", min_tokens=9, max_tokens=3),
    chat("no room for output", "no room for output", "max_length", max_length=5),
    chat("too long", "the prompt has 609 tokens", "messages", messages=LONG),
    chat("bias of a word", 'logit_bias has the key "the"', "logit_bias", logit_bias={"the": 1}),
    chat("bias of a negative id", 'logit_bias has the key "-1"', "logit_bias", logit_bias={"-1": 1}),
    chat("bias over 100", "logit_bias.5 is 101; allowed: a number from -100 to 100", "logit_bias.5", logit_bias={"5": 101}),
    chat("bias as text", 'logit_bias.5 is "x"; allowed: a number', "logit_bias.5", logit_bias={"5": "x"}),
    chat("bias outside of the vocabulary", "logit_bias is 4096; allowed: token ids from 0 to 4095", "logit_bias", logit_bias={"4096": 1}),
    chat("bias as a list", "logit_bias is [1]; allowed: an object whose values are numbers", "logit_bias", logit_bias=[1]),
    chat("stop outside of the vocabulary", "stop_token_ids is 4096; allowed", "stop_token_ids", stop_token_ids=[1, 4096]),
    chat("negative token", "stop_token_ids[0] is -1; allowed: an integer from 0", "stop_token_ids[0]", stop_token_ids=[-1]),
    chat("nothing left", "allowed_token_ids is [5]; allowed: a token id that bad_words_ids does not forbid", "allowed_token_ids", allowed_token_ids=[5], bad_words_ids=[[5]]),
    chat("nothing allowed", "allowed_token_ids is []; allowed: a non-empty list", "allowed_token_ids", allowed_token_ids=[]),
    chat("an empty word", "stop_words_ids[0] is []; allowed: a non-empty list", "stop_words_ids[0]", stop_words_ids=[[]]),
    chat("logprobs as a number", "logprobs is 3; allowed: true or false", "logprobs", logprobs=3),
    chat("alternatives alone", "top_logprobs is 3; allowed: 0 unless logprobs is true", "top_logprobs", top_logprobs=3),
    chat("too many alternatives", "top_logprobs is 21; allowed: an integer from 0 to 20", "top_logprobs", logprobs=True, top_logprobs=21),
    chat("options without a stream", "allowed: null without stream", "stream_options", stream_options={"include_usage": True}),
    chat("options as bool", "stream_options is true; allowed: an object", "stream_options", stream=True, stream_options=True),
    chat("unknown option", "stream_options.foo is not a field", "stream_options.foo", stream=True, stream_options={"foo": 1}),
    chat("stream as text", 'stream is "yes"; allowed: true or false', "stream", stream="yes"),
    chat("unknown field", "foo is not a field of this request", "foo", foo=1),
    chat("a slip of the pen", "did you mean max_tokens?", "max_token", max_token=1),
    chat("tools", "tools is [{", "tools", tools=[{"type": "function"}]),
    chat("tool choice", 'tool_choice is "required"; allowed: "none" or "auto"', "tool_choice", tool_choice="required"),
    chat("response format", '"json_object"; allowed: "text"', "response_format.type", response_format={"type": "json_object"}),
    chat("audio", "audio is not a field of this request", "audio", audio={"voice": "x"}),
    chat("modalities", 'modalities[0] is "audio"; allowed: "text"', "modalities[0]", modalities=["audio"]),
    chat("metadata", "metadata.a is 1; allowed: text", "metadata.a", metadata={"a": 1}),
    chat("echo alone", "allowed: false unless continue_final_message is true", "echo", echo=True),
    chat("two ends", "add_generation_prompt is true; allowed: false", "add_generation_prompt", continue_final_message=True, add_generation_prompt=True),
    chat("a template", "--trust-request-templates", "chat_template", chat_template="{{ messages }}"),
    chat("a template's own variable", "allowed: names other than", "chat_template_kwargs", chat_template_kwargs={"messages": []}),
    chat("no time", "timeout is 0; allowed: a number above 0", "timeout", timeout=0),
    chat("priority", "priority is 1.5; allowed: an integer", "priority", priority=1.5),
    Bad("chat: unknown model", CHAT, {"messages": QUESTION, "model": "nope"}, "model", "no model named 'nope'", 404),
    chat("model as a number", "model is 5; allowed: text", "model", model=5),
    Bad("chat: time as a word", CHAT, {"messages": QUESTION}, "X-Request-Timeout", "seconds above 0", headers={"X-Request-Timeout": "soon"}),
    Bad("chat: negative time", CHAT, {"messages": QUESTION}, "X-Request-Timeout", '"-1"', headers={"X-Request-Timeout": "-1"}),
    Bad("chat: time that is none", CHAT, {"messages": QUESTION}, "X-Request-Timeout", '"nan"', headers={"X-Request-Timeout": "nan"}),
]  # fmt: skip

OTHERS = [
    Bad("completion: no prompt", TEXT, {}, "prompt", "prompt is missing"),
    text("null", f"prompt is null; allowed: {FORMS}", "prompt", prompt=None),
    text("empty", f'prompt is ""; allowed: {FORMS}', "prompt", prompt=""),
    text("no prompts", f"prompt is []; allowed: {FORMS}", "prompt", prompt=[]),
    text("a number", f"prompt is 1; allowed: {FORMS}", "prompt", prompt=1),
    text("an object", "prompt is {}; allowed: non-empty text", "prompt", prompt={}),
    text("an empty prompt of several", f'prompt is [""]; allowed: {FORMS}', "prompt", prompt=[""]),
    text("ids and texts", f'prompt is [1, "a"]; allowed: {FORMS}', "prompt", prompt=[1, "a"]),
    text("lists and ids", f"prompt is [[1], 2]; allowed: {FORMS}", "prompt", prompt=[[1], 2]),
    text("no ids", f"prompt is [[]]; allowed: {FORMS}", "prompt", prompt=[[]]),
    text("ids as bools", f"prompt is [true]; allowed: {FORMS}", "prompt", prompt=[True]),
    text("an id outside of the vocabulary", "4096; allowed: integers from 0 to 4095", "prompt", prompt=[1, 4096]),
    text("a negative id", "prompt is [-1]; allowed", "prompt", prompt=[-1]),
    text("too long", "the prompt has 512 tokens", "prompt", prompt=[1] * 512),
    text("too many prompts", "prompt has 20 prompts and n is 128", "prompt", prompt=["a"] * 20, n=128),
    text("suffix", 'suffix is "x"; allowed: null', "suffix", suffix="x"),
    text("best of two", "best_of is 2; allowed: 1", "best_of", best_of=2),
    text("nothing at all", "max_tokens is 0; allowed: 1 or more without echo", "max_tokens", max_tokens=0),
    text("logprobs as bool", "logprobs is true; allowed: an integer from 0 to 20", "logprobs", logprobs=True),
    text("too many logprobs", "logprobs is 21; allowed: an integer from 0 to 20", "logprobs", logprobs=21),
    text("messages", "messages is not a field of this request", "messages", messages=QUESTION),
    text("options without a stream", "allowed: null without stream", "stream_options", stream_options={}),
    Bad("embedding: no input", EMBED, {}, "input", "input is missing"),
    embed("empty", 'input is ""; allowed: non-empty text', "input", input=""),
    embed("nothing", "input is []; allowed: non-empty text", "input", input=[]),
    embed("too many", "non-empty list of up to 2048 non-empty texts", "input", input=["a"] * 2049),
    embed("encoding", 'encoding_format is "hex"; allowed: "float" or "base64"', "encoding_format", encoding_format="hex"),
    embed("no dimensions", "dimensions is 0; allowed: an integer from 1", "dimensions", dimensions=0),
    embed("too many dimensions", "dimensions is 100000; allowed: 1 to", "dimensions", dimensions=100_000),
    embed("an id outside of the vocabulary", "4096; allowed: integers from 0 to 4095", "input", input=[4096]),
    embed("too long", "the prompt has 601 tokens", "input", input="word " * 600),
    embed("unknown field", "is not a field of this request", "temperature", temperature=0),
    Bad("response: no input", RESPONSE, {}, "input", "input is missing"),
    response("null", "input is missing", "input", input=None),
    response("a number", "input is 5; allowed: text or a list of objects", "input", input=5),
    response("an item as a number", "input[0] is 1; only objects", "input[0]", input=[1]),
    response("an image", "allowed: message, reasoning, item_reference", "input[0]", input=[{"type": "image"}]),
    response("a message without content", "input[0].content is missing", "input[0].content", input=[{"role": "user"}]),
    response("a part without text", "is missing", "input[0].content[0].text", input=[{"role": "user", "content": [{"type": "input_text"}]}]),
    response("an unknown part", "allowed: input_text, output_text, refusal", "input[0].content[0]", input=[{"role": "user", "content": [{"type": "input_image"}]}]),
    response("an unknown item", "not found", "previous_response_id", previous_response_id="resp_x"),
    response("too many keys", "an object of up to 16 fields", "metadata", metadata=dict.fromkeys("abcdefghijklmnopq", "x")),
    response("a long key", "allowed: up to 64 characters", "metadata", metadata={"a" * 65: "x"}),
    response("max_tokens", "max_output_tokens is the field of this route", "max_tokens", max_tokens=4),
    response("n", "only null is allowed", "n", n=2),
    response("tools", "allowed: an empty list", "tools", tools=[{"type": "web_search"}]),
    response("format", '"json_schema"; allowed: "text"', "text.format.type", text={"format": {"type": "json_schema"}}),
    response("background unstored", "store is false; allowed: true with background", "store", background=True, store=False),
    Bad("response: unknown", f"{RESPONSE}/resp_x", b"", "response_id", "not found", 404, method="GET"),
    Bad("response: cancel an unknown one", f"{RESPONSE}/resp_x/cancel", b"", "response_id", "not found", 404),
    Bad("response: no page", f"{RESPONSE}/resp_x/input_items?limit=0", b"", "limit", 'limit is "0"', method="GET"),
    Bad("tokenize: nothing", "/tokenize", {}, "prompt", "are missing; allowed: one of the two"),
    Bad("tokenize: both", "/tokenize", {"prompt": "x", "messages": QUESTION}, "prompt", "are both given"),
    Bad("tokenize: several", "/tokenize", {"prompt": ["x"]}, "prompt", 'prompt is ["x"]; allowed: text'),
    Bad("detokenize: nothing", "/detokenize", {}, "tokens", "tokens is missing"),
    Bad("detokenize: text", "/detokenize", {"tokens": "x"}, "tokens", "allowed: a list of integers from 0"),
    Bad("detokenize: outside", "/detokenize", {"tokens": [4096]}, "tokens", "4096; allowed: ids of the vocabulary"),
    Bad("old: unknown field", "/old/generate", {"messages": QUESTION, "n": 2}, "n", "is not a field"),
    Bad("old: bad value", "/old/stream", {"messages": QUESTION, "top_k": -2}, "top_k", "top_k is -2; allowed"),
    Bad("old: too long", "/old/stream", {"messages": LONG}, "messages", "the prompt has 609 tokens"),
    Bad("old: load without key", "/old/initialize", {"model": "other"}, None, "needs the admin key", 403),
    load("no key", "no API key was sent", None, 401, {}, model="pyhelp"),
    load("wrong key", "is not known here", None, 401, {"Authorization": "Bearer no"}, model="pyhelp"),
    load("strange key", "is not known here", None, 401, {"X-API-Key": "\xff\x80"}, model="pyhelp"),
    load("no model", "model is missing", "model"),
    load("the same name", "pyhelp", None, 409, model="pyhelp"),
    load("no such model", "a\\x00b", "model", 404, model="a\0b"),
    load("bad dtype", 'dtype is "x"; allowed: auto, float32', "dtype", model="pyhelp", name="x", dtype="x"),
    load("bad size", "block_size is 17; allowed", "block_size", model="pyhelp", name="x", block_size=17),
    load("negative threads", "threads is -1; allowed: an integer from 0", "threads", model="pyhelp", name="x", threads=-1),
    load("share over 1", "a number above 0 up to 1", "memory_fraction", model="pyhelp", name="x", memory_fraction=2),
    Bad("unload: no such model", "/unload", {"model": "x"}, "model", "no model named 'x'", 404, headers=ADMIN),
    Bad("GET where POST is", CHAT, b"", None, "allowed: POST", 405, method="GET"),
    Bad("PUT", TEXT, {"prompt": "os"}, None, "allowed: POST", 405, method="PUT"),
    Bad("POST where GET is", "/v1/models", {}, None, "allowed: GET", 405),
    Bad("POST where two others are", f"{RESPONSE}/x", {}, None, "allowed: DELETE, GET", 405),
    Bad("unknown path", "/v1/nothing", {}, None, "there is nothing at this path", 404),
    Bad("unknown model's page", "/v1/models/x%00%ff", b"", "model", "no model named", 404, method="GET"),
]  # fmt: skip
TABLE = [*BODIES, *CHATS, *OTHERS]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(serve):
    model = ModelConfig(model="pyhelp", max_length=512, num_blocks=256)
    async with serve(model, config=ServerConfig(admin_key="secret", max_body_bytes=MAX_BODY)) as running:
        yield running


@pytest.fixture
def quiet_log(caplog):
    """Fails the test when the server has logged an error or a traceback."""
    yield
    loud = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert loud == []


def error_of(response):
    """The error of an answer in OpenAI's envelope."""
    assert response.headers["content-type"] == JSON
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


async def assert_undisturbed(server, answer):
    """A good request gets its exact answer, and nothing is left of the others."""
    good = await server.post(CHAT, messages=QUESTION, temperature=0)
    assert good.json()["choices"][0]["message"]["content"] == answer
    await server.all_is_free()


@pytest.mark.parametrize("bad", TABLE, ids=str)
async def test_each_is_refused_by_name(server, answer, quiet_log, bad):
    content = bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
    headers = {"Content-Type": JSON, **{name: value.encode("latin-1") for name, value in bad.headers.items()}}
    response = await server.client.request(bad.method, bad.path, content=content, headers=headers)
    assert response.status_code == bad.status, response.text
    error = error_of(response)
    assert error["param"] == bad.param, error
    assert bad.words in error["message"], error
    assert len(error["message"]) < 600 and "\n" not in error["message"]
    await assert_undisturbed(server, answer)


async def test_the_table_is_as_long_as_its_names_are_distinct():
    assert len({bad.name for bad in TABLE}) == len(TABLE) >= 80


@asynccontextmanager
async def connection(server):
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


def head(path=TEXT, *lines):
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {JSON}", *lines, "", ""]
    ).encode()


async def exchanged(server, sent):
    """The status of the answer to these bytes, and the answer."""
    async with connection(server) as (reader, writer):
        writer.write(sent)
        async with asyncio.timeout(HANG_SECONDS):
            status = int((await reader.readline()).split()[1])
            rest = await reader.readuntil(b"\r\n\r\n")
            lines = dict(line.split(": ", 1) for line in rest.decode().lower().split("\r\n") if line)
            body = await reader.readexactly(int(lines["content-length"]))
    return status, body.decode()


BODY = b'{"prompt": "os", "max_tokens": 1}'


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"POST / HTTP/9.9\r\n\r\n", 400),
        (head(TEXT, "Content-Length: many") + BODY, 400),
        (head(TEXT, "Content-Length: -1") + BODY, 400),
        (head(TEXT, f"Content-Length: {len(BODY)}", "Content-Length: 5") + BODY, 400),
        (head(TEXT, "Transfer-Encoding: chunked") + b"zz\r\n", 400),
        (head(TEXT, "A header without colon", "Content-Length: 0"), 400),
        (head(TEXT, f"Content-Length: {len(BODY) - 5}") + BODY, 400),  # what is read is cut off
        (head(TEXT, f"Content-Length: {MAX_BODY + 1}") + b" " * (MAX_BODY + 1), 413),
        (head(TEXT, "Transfer-Encoding: chunked") + b"10000\r\n" + b" " * 65536 + b"\r\n", None),
    ],
    ids=["no HTTP", "no version", "words", "negative", "two lengths", "no chunk", "no header", "short", "large", "half"],
)  # fmt: skip
async def test_lies_about_the_body_are_refused(server, answer, quiet_log, sent, status):
    if status is None:  # the client goes away in the middle of its body
        async with connection(server) as (_, writer):
            writer.write(sent)
            await writer.drain()
    else:
        told, body = await exchanged(server, sent)
        assert told == status
        if status == 413:
            assert json.loads(body)["error"]["code"] == "request_too_large"
    await assert_undisturbed(server, answer)


async def test_chunks_beyond_the_limit_are_refused(server, answer, quiet_log):
    async def chunks():
        for _ in range(MAX_BODY // 65536 + 1):
            yield b" " * 65536

    response = await server.client.post(TEXT, content=chunks(), headers={"Content-Type": JSON})
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    await assert_undisturbed(server, answer)


async def test_less_than_was_announced_starts_nothing(server, answer, quiet_log):
    before = sum(server.stats().finished.values())
    async with connection(server) as (_, writer):
        writer.write(head(TEXT, f"Content-Length: {len(BODY) + 10}") + BODY)
        await writer.drain()
    await assert_undisturbed(server, answer)
    assert sum(server.stats().finished.values()) == before + 1  # the good one


@pytest.mark.parametrize("name", ["a" * 129, "with blank", "ä"])
async def test_bad_request_ids_are_replaced(server, quiet_log, name):
    headers = {"X-Request-Id": name.encode("latin-1")}
    response = await server.client.post("/tokenize", json={"prompt": "x"}, headers=headers)
    assert response.status_code == 200
    assert response.headers["x-request-id"].isalnum() and response.headers["x-request-id"] != name


async def test_good_and_bad_ones_at_once(server, answer, quiet_log):
    """200 requests in one go: the bad ones are refused as they are alone, the good ones are exact."""
    draw = random.Random(11)

    async def good(stream):
        body = {"messages": QUESTION, "temperature": 0, "max_tokens": 64}
        if not stream:
            return (await server.post(CHAT, **body)).json()["choices"][0]["message"]["content"]
        events = [json.loads(data) for data in (await server.events(CHAT, **body))[:-1]]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events)

    async def refused(bad):
        content = bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
        headers = {
            "Content-Type": JSON,
            **{key: value.encode("latin-1") for key, value in bad.headers.items()},
        }
        response = await server.client.request(bad.method, bad.path, content=content, headers=headers)
        assert (response.status_code, error_of(response)["param"]) == (bad.status, bad.param), bad.name

    small = [bad for bad in TABLE if not isinstance(bad.body, bytes) or len(bad.body) < 10_000]
    kinds = [draw.random() < 0.4 for _ in range(200)]
    calls = [good(draw.random() < 0.5) if kind else refused(draw.choice(small)) for kind in kinds]
    outcomes = await asyncio.gather(*calls)
    assert outcomes == [answer if kind else None for kind in kinds]
    await server.all_is_free()
