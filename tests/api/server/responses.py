"""A model that says what a test has written, and what is asked of it through /v1/responses."""

from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from millstream.backends.fake import FakeBackend
from millstream.backends.text.tokenizer import HFTokenizer

PATH = "/v1/responses"
EVENT = TypeAdapter(ResponseStreamEvent)
ITEM = TypeAdapter(ResponseItem)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if effort_shown is defined %}{{ reasoning_effort }}{% endif %}{% endif %}"
)
THOUGHT = ["<th", "ink>", "\n", "Well", ", 2", "</think>", "\n\n", "It", " is", " four", "<end>"]


class Script:
    def __init__(self, pieces):
        self._pieces = iter(pieces)

    def push(self, token_id):
        return next(self._pieces, "")

    def flush(self):
        return ""


class ScriptedTokenizer:
    """A token a byte; but every output reads as it is written here, a piece a token."""

    def __init__(self, pieces, template=TEMPLATE):
        letters = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        pipeline = Tokenizer(models.BPE(vocab=letters, merges=[]))
        pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pipeline.decoder = decoders.ByteLevel()
        pipeline.add_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
        self._bytes = HFTokenizer(
            pipeline, special_tokens={"eos_token": "<|im_end|>"}, chat_templates={"default": template}
        )
        self.pieces = pieces

    def __getattr__(self, name):
        return getattr(self._bytes, name)

    def stream(self, *, skip_special_tokens=True):
        return Script(self.pieces)


def scripted(fake, pieces=("It is", " four", "<end>"), *, step_time=0.0, **config):
    """A model that says `pieces`; with stop=["<end>"] it is complete there."""
    tokenizer = ScriptedTokenizer(list(pieces))
    backend = FakeBackend(vocab_size=258, max_length=512, step_time=step_time, tokenizer=tokenizer)
    return fake(backend=backend, **config)


ASK = {"input": "How much is two and two?", "stop": ["<end>"], "ignore_eos": True}


def without_extras(model, path=""):
    """Every field is one that OpenAI's client knows."""
    for name in model.model_extra or {}:
        assert (path, name) in {("", "store"), ("response", "store")}, (path, name)
    for name in type(model).model_fields:
        value = getattr(model, name)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, BaseModel):
                without_extras(part, name)


def read(text):
    """A response that is exactly one of OpenAI's."""
    response = Response.model_validate_json(text, strict=True)
    without_extras(response)
    return response


async def create(server, status=200, **body):
    answer = await server.post(PATH, **{**ASK, **body})
    assert answer.status_code == status, answer.text
    return read(answer.text) if status == 200 else answer.json()["error"]


async def streamed(server, **body):
    events = []
    for text in await server.events(PATH, **{**ASK, **body}):
        event = EVENT.validate_json(text, strict=True)
        without_extras(event)
        events.append(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def client_of(server, **options):
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, **options)
