"""ModelHandler, over templates of no special family and every kind of tokenizer."""

from pathlib import Path

import pytest

from millstream.api.handlers import (
    LlamaHandler,
    MistralHandler,
    ModelHandler,
    QwenHandler,
    handler_for,
    register_handler,
)
from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.fake import FakeBackend
from millstream.backends.registry import inspect_model
from millstream.errors import InvalidArgument, ModelFormatError, NotSupported

HI = [{"role": "user", "content": "hi"}]
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STRICT = """{{ bos_token }}{% for m in messages -%}
{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{ '<' + m.role + '>' + m.content | trim + '</s>' }}
{%- endfor %}"""
PARTS = """{% for m in messages %}{% for p in m.content if p.type == 'text' %}
{{- p.text }};
{%- endfor %}{% endfor %}"""


@pytest.mark.torch
@pytest.mark.parametrize("name", ["pyhelp", "pyhelp-q8_0"])
def test_the_bundled_model_gets_its_own_format(name: str) -> None:
    pytest.importorskip("tokenizers" if name == "pyhelp" else "llama_cpp")
    backend, info = inspect_model(str(BUNDLED_MODELS[name]))
    tokenizer = backend.load_tokenizer(info)
    handler = handler_for(info, tokenizer)
    chat = [{"role": "developer", "content": [{"type": "text", "text": "be brief"}]}, *HI]
    text = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    prompt = handler.prompt(chat)
    assert tokenizer.decode(prompt, skip_special_tokens=False) == text
    assert prompt == tokenizer.encode(text, add_special_tokens=False)
    assert handler.stop_token_ids == ()
    assert handler.sampling_defaults == info.generation_defaults
    assert handler.reasoning(prompt) is None


def test_a_model_without_a_template_refuses_chats() -> None:
    backend = FakeBackend()
    info = backend.inspect("fake", Path("fake"))
    handler = handler_for(info, backend.load_tokenizer(info))
    with pytest.raises(NotSupported, match="chat template"):
        handler.prompt(HI)
    assert handler.stop_token_ids == ()
    assert handler.reasoning([1, 2, 3]) is None


def test_a_template_may_be_given(make_handler, text_of) -> None:
    handler = make_handler("Unknown", None)
    assert type(handler) is ModelHandler
    with pytest.raises(NotSupported):
        handler.prompt(HI)
    assert text_of(handler, HI, chat_template=PLAIN) == "user: hi\nassistant: "
    assert text_of(make_handler("Unknown", None, chat_template=PLAIN), HI) == "user: hi\nassistant: "
    replaced = make_handler("Unknown", PLAIN, chat_template="{{ messages[0].content }}!")
    assert text_of(replaced, HI) == "hi!"


def test_a_template_that_is_no_jinja_is_refused_at_once(make_handler) -> None:
    with pytest.raises(InvalidArgument, match="chat_template"):
        make_handler("Unknown", PLAIN, chat_template="{% if %}")
    with pytest.raises(InvalidArgument) as caught:
        make_handler("Unknown", PLAIN).prompt(HI, chat_template="{{")
    assert caught.value.parameter == "chat_template"
    broken = make_handler("Unknown", "{% if %}")
    assert broken.stop_token_ids == ()
    with pytest.raises(ModelFormatError):
        broken.prompt(HI)


@pytest.mark.parametrize(
    "body", ["{{ 1 / 0 }}", "{{ messages.nothing.deeper }}", "{{ raise_exception('no') }}"]
)
def test_whatever_a_template_raises_is_one_error(make_handler, body: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make_handler("Unknown", body).prompt(HI)
    assert caught.value.parameter == "messages"


def test_values_nested_too_deep_are_refused(make_handler) -> None:
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidArgument) as caught:
        make_handler("Unknown", PLAIN).prompt([{"role": "user", "content": "hi", "other": deep}])
    assert caught.value.parameter == "messages"


def test_variables_reach_the_template_but_replace_no_argument(make_handler, text_of) -> None:
    handler = make_handler("Unknown", "{{ messages[0].content }} {{ tone }}")
    assert text_of(handler, HI, template_variables={"tone": "soft"}) == "hi soft"
    for name in ("self", "messages", "add_generation_prompt", "chat_template", 5):
        with pytest.raises(InvalidArgument) as caught:
            handler.prompt(HI, template_variables={name: []})
        assert caught.value.parameter == "template_variables"


def test_the_last_message_can_be_continued(make_handler, text_of) -> None:
    begun = [*HI, {"role": "assistant", "content": "Well"}]
    keywords = {"continue_final_message": True, "add_generation_prompt": False}
    assert text_of(make_handler("Unknown", PLAIN), begun, **keywords) == "user: hi\nassistant: Well"
    assert text_of(make_handler("Unknown", STRICT), begun, **keywords) == "<s><user>hi</s><assistant>Well"
    parts = make_handler("Unknown", PARTS)
    assert text_of(parts, begun, **keywords) == "hi;Well"


def test_a_sequence_begins_once(make_handler, text_of) -> None:
    for template in ("{{ bos_token }}", "{{ bos_token + bos_token }}<s>"):
        handler = make_handler("Unknown", template + PLAIN)
        handler.tokenizer._tokenizer.post_processor = _adds_bos(handler)
        assert text_of(handler, HI) == "<s>user: hi\nassistant: "


def _adds_bos(handler: ModelHandler):
    from tokenizers.processors import TemplateProcessing

    (bos,) = handler.tokenizer.encode("<s>", add_special_tokens=False)
    return TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])


def test_a_template_that_takes_everything_gets_everything(make_handler, text_of) -> None:
    chat = [
        {"role": "system", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "user", "content": "d"},
        {"role": "system", "content": "e"},
    ]
    assert text_of(make_handler("Unknown", PLAIN), chat) == (
        "system: a\nassistant: b\nuser: c\nuser: d\nsystem: e\nassistant: "
    )


def test_contents_are_parts_where_the_template_reads_parts_alone(make_handler, text_of) -> None:
    chat = [{"role": "system", "content": "a"}, *HI, *HI]
    assert text_of(make_handler("Unknown", PARTS), chat) == "a;hi;hi;"


def test_a_strict_template_gets_turns(make_handler, text_of) -> None:
    handler = make_handler("Unknown", STRICT)
    chat = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "assistant", "content": "e"},
        {"role": "system", "content": "f"},
        {"role": "user", "content": "g"},
    ]
    assert text_of(handler, chat) == "<s><user>a\n\nb\n\nc</s><assistant>d\n\ne</s><user>f\n\ng</s>"
    with pytest.raises(InvalidArgument) as caught:
        handler.prompt([{"role": "assistant", "content": "hi"}, *HI])
    assert caught.value.parameter == "messages[0].role"
    assert caught.value.value == "assistant"


def test_a_turn_ends_with_the_special_token_behind_it(make_handler) -> None:
    template = "{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}"
    handler = make_handler("Unknown", template)
    (im_end,) = handler.tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert handler.stop_token_ids == (im_end,)
    assert handler.sampling_defaults == {
        "temperature": 0.5,
        "eos_token_ids": (*handler.info.eos_token_ids, im_end),
    }
    assert make_handler("Unknown", PLAIN).stop_token_ids == ()
    assert make_handler("Unknown", STRICT).stop_token_ids == ()


def test_the_class_registered_last_is_used(make_handler) -> None:
    @register_handler
    class First(ModelHandler):
        architectures = ("Registered",)

    @register_handler
    class Second(ModelHandler):
        architectures = ("Registered",)

        @classmethod
        def fits(cls, info, chat_template) -> bool:
            return chat_template == PLAIN

    assert type(make_handler("Registered", PLAIN)) is Second
    assert type(make_handler("Registered", STRICT)) is First
    with pytest.raises(InvalidArgument, match="Nameless"):
        register_handler(type("Nameless", (ModelHandler,), {}))


@pytest.mark.parametrize(
    ("architecture", "template", "expected"),
    [
        ("LlamaForCausalLM", PLAIN, LlamaHandler),
        ("MistralForCausalLM", PLAIN, MistralHandler),
        ("Mistral3ForConditionalGeneration", None, MistralHandler),
        ("Qwen3ForCausalLM", PLAIN, QwenHandler),
        ("qwen2", PLAIN, QwenHandler),
        ("llama", PLAIN, LlamaHandler),
        ("llama", "[INST]{{ messages[0].content }}[/INST]", MistralHandler),
        ("llama", "[INST]<<SYS>>{{ messages[0].content }}[/INST]", LlamaHandler),
        ("Fake", None, ModelHandler),
    ],
)
def test_families_are_found_by_architecture(make_handler, architecture, template, expected) -> None:
    assert type(make_handler(architecture, template)) is expected
