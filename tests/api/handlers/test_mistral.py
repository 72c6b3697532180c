"""Mistral: strict turns, system messages inside of users', reasoning between tokens."""

import pytest

from millstream.api.handlers import AnswerDelta
from millstream.errors import InvalidArgument

from .conftest import SPECIAL

OLD = """{{ bos_token }}{% for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}
{%- else %}{{ raise_exception('only users and assistants') }}{% endif %}
{%- endfor %}"""
LATER = """{%- if messages[0].role == 'system' %}{% set system, chat = messages[0].content, messages[1:] %}
{%- else %}{% set chat = messages %}{% endif %}
{{- bos_token }}
{%- for m in chat %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}
{%- if m.role == 'user' and loop.last and system is defined %}
{{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}
{%- elif m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}"""
NEW = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'user' %}[INST]{{ m.content }}[/INST]
{%- elif m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]
{%- elif m.content is string %}{{ m.content + eos_token }}
{%- else %}{% for p in m.content %}
{{- '[THINK]' + p.thinking + '[/THINK]' if p.type == 'thinking' else p.text }}
{%- endfor %}{% endif %}{% endfor %}"""
SYSTEM = {"role": "system", "content": "brief"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **fields: str) -> dict[str, str]:
    return {"role": "assistant", "content": text, **fields}


@pytest.fixture
def handler(make_handler):
    return lambda template, **settings: make_handler("MistralForCausalLM", template, **settings)


def test_turns_that_alternate_stay_as_they_are(handler, text_of) -> None:
    chat = [user("a"), assistant("b"), user("c")]
    assert text_of(handler(OLD), chat) == "<s>[INST] a [/INST]b</s>[INST] c [/INST]"


def test_a_system_message_is_said_by_the_first_user(handler, text_of) -> None:
    chat = [SYSTEM, user("a"), assistant("b"), user("c")]
    assert text_of(handler(OLD), chat) == "<s>[INST] brief\n\na [/INST]b</s>[INST] c [/INST]"
    assert text_of(handler(OLD), [SYSTEM]) == "<s>[INST] brief [/INST]"


def test_where_the_template_has_a_place_for_it_the_template_decides(handler, text_of) -> None:
    chat = [SYSTEM, SYSTEM, user("a"), assistant("b"), SYSTEM, user("c")]
    assert text_of(handler(LATER), chat[1:4] + chat[5:]) == (
        "<s>[INST] a[/INST] b</s>[INST] brief\n\nc[/INST]"
    )
    assert text_of(handler(LATER), chat) == (
        "<s>[INST] a[/INST] b</s>[INST] brief\n\nbrief\n\nbrief\n\nc[/INST]"
    )
    assert (
        text_of(handler(NEW), [SYSTEM, user("a")]) == "<s>[SYSTEM_PROMPT]brief[/SYSTEM_PROMPT][INST]a[/INST]"
    )


def test_neighbours_of_one_role_are_joined_where_the_template_refuses_them(handler, text_of) -> None:
    chat = [user("a"), user("b"), assistant("c"), assistant("d"), user("e")]
    assert text_of(handler(OLD), chat) == "<s>[INST] a\n\nb [/INST]c\n\nd</s>[INST] e [/INST]"
    assert text_of(handler(NEW), chat) == "<s>[INST]a[/INST][INST]b[/INST]c</s>d</s>[INST]e[/INST]"


@pytest.mark.parametrize("template", [OLD, LATER])
def test_an_assistant_cannot_begin(handler, template: str) -> None:
    chat = [assistant("a"), user("b")] if template == OLD else [SYSTEM, assistant("a"), user("b")]
    with pytest.raises(InvalidArgument, match="take turns") as caught:
        handler(template).prompt(chat)
    assert caught.value.parameter == f"messages[{len(chat) - 2}].role"


def test_an_answer_can_be_continued(handler, text_of) -> None:
    keywords = {"continue_final_message": True, "add_generation_prompt": False}
    chat = [user("a"), assistant("b "), assistant(" c")]
    assert text_of(handler(OLD), chat, **keywords) == "<s>[INST] a [/INST]b \n\n c"


def test_reasoning_is_parted_at_tokens_of_its_own(handler, text_of) -> None:
    thinker = handler(NEW, special=(*SPECIAL, "[THINK]", "[/THINK]"))
    chat = [user("a"), assistant("b", reasoning_content="why"), user("c")]
    assert text_of(thinker, chat) == "<s>[INST]a[/INST][THINK]why[/THINK]b</s>[INST]c[/INST]"
    assert thinker.sampling_defaults["skip_special_tokens"] is False
    splitter = thinker.reasoning(thinker.prompt(chat))
    assert splitter.split("[THINK]so[/THINK]yes") == AnswerDelta("so", "yes")
    begun = [user("a"), assistant("", reasoning_content="w")]
    prompt = thinker.tokenizer.encode("<s>[INST]a[/INST][THINK]w", add_special_tokens=False)
    assert thinker.reasoning(prompt).split("hy[/THINK]b") == AnswerDelta("hy", "b")
    ended = thinker.prompt(begun, continue_final_message=True, add_generation_prompt=False)
    assert thinker.reasoning(ended) is None
    assert "skip_special_tokens" not in handler(OLD).sampling_defaults
