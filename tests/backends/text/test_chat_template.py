import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from millstream.backends.text.chat_template import ChatTemplates
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.errors import InvalidArgument, ModelFormatError, NotSupported

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- set ns.last = loop.index0 %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
    {%- if message.tool_calls %}{{ message.tool_calls[0].function.arguments | tojson(indent=2) }}{% endif %}
    {{- '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {% else %}
        {{ raise_exception('Only user and assistant roles are supported!') }}
    {% endif %}
    {% if loop.index > 50 %}{% break %}{% endif %}
{% endfor %}
"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": " Was heißt <b>größer</b>? "}
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [USER, {"role": "assistant", "content": "Ja.\n"}, {"role": "user", "content": "'quotes' & <tags>"}],
    [{"role": "user", "content": "x", "name": None}, {"role": "assistant", "content": "y", "reasoning": "z"}],
]
TOOL = {
    "type": "function",
    "function": {"name": "größe", "parameters": {"type": "object", "a": [1, 2.5, None, True]}},
}


def theirs(template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, "<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=bare, chat_template=template, **TOKENS)


def ours(template: str) -> ChatTemplates:
    return ChatTemplates({"default": template}, TOKENS)


@pytest.mark.torch
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers_does(
    name: str, chat: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    expected = theirs(TEMPLATES[name]).apply_chat_template(
        chat, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert ours(TEMPLATES[name]).render(chat, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.torch
def test_tools_and_variables_render_as_transformers_does() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"arguments": {"ä": [1, {"b": None}]}}}]}
    expected = theirs(CHATML).apply_chat_template(
        [USER, call], tools=[TOOL], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert ours(CHATML).render([USER, call], tools=[TOOL], enable_thinking=False) == expected
    assert "größe" in expected


@pytest.mark.torch
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("content", ["To be", "To be ", "To be\n"])
def test_continuing_the_last_message_as_transformers_does(name: str, content: str) -> None:
    chat = [USER, {"role": "assistant", "content": content}]
    expected = theirs(TEMPLATES[name]).apply_chat_template(chat, tokenize=False, continue_final_message=True)
    rendered = ours(TEMPLATES[name]).render(chat, add_generation_prompt=False, continue_final_message=True)
    assert rendered == expected
    assert rendered.rstrip().endswith("To be")
    assert chat[-1]["content"] == content


def test_continuing_needs_no_generation_prompt_and_a_text() -> None:
    with pytest.raises(InvalidArgument, match="add_generation_prompt is True"):
        ours(CHATML).render([USER], continue_final_message=True)
    for template, message in ((CHATML, {"role": "assistant"}), ("nothing", USER)):
        with pytest.raises(InvalidArgument, match="continue_final_message is True"):
            ours(template).render([message], add_generation_prompt=False, continue_final_message=True)


def test_parts_of_a_message_can_be_continued() -> None:
    template = "{% for part in messages[0].content %}{{ part.text }}|{% endfor %}end"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]
    text = ours(template).render(
        [{"role": "user", "content": parts}], add_generation_prompt=False, continue_final_message=True
    )
    assert text == "a|b "


def test_today() -> None:
    assert ours("{{ strftime_now('%Y') }}").render([USER]) in {str(datetime.now().year + i) for i in (0, -1)}


def test_refused_conversation_names_the_reason() -> None:
    with pytest.raises(
        InvalidArgument, match=r"messages is \('system',\); .*Only user and assistant roles|alternate"
    ):
        ours(MISTRAL).render([{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ dict.__init__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(template: str) -> None:
    with pytest.raises(InvalidArgument, match="what the chat template accepts"):
        ours(template + "{{ [].x.y }}").render([USER])


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([], None),
        ("hello", None),
        ([["user", "x"]], None),
        ([{"role": "user", "content": b"x"}], None),
        ([USER], [print]),
    ],
)
def test_only_plain_values_are_let_in(messages: Any, tools: Any) -> None:
    with pytest.raises(InvalidArgument):
        ours(CHATML).render(messages, tools=tools)


def test_named_templates() -> None:
    templates = ChatTemplates({"default": "D", "tool_use": "T", "rag": "R"}, {})
    assert templates.render([USER]) == "D"
    assert templates.render([USER], tools=[TOOL]) == "T"
    assert templates.render([USER], tools=[TOOL], chat_template="rag") == "R"
    assert templates.render([USER], chat_template="{{ messages | length }}") == "1"
    with pytest.raises(InvalidArgument, match=r"chat_template is '\{% if'; .*default, rag, tool_use"):
        templates.render([USER], chat_template="{% if")


def test_no_template() -> None:
    with pytest.raises(NotSupported, match="no chat template: pass"):
        ChatTemplates({}, {}).render([USER])
    with pytest.raises(NotSupported, match="it has rag, tool_use"):
        ChatTemplates({"tool_use": "T", "rag": "R"}, {}).render([USER])
    assert ChatTemplates({}, {}).default is None


def test_broken_template_of_the_model() -> None:
    with pytest.raises(ModelFormatError, match="default chat template is not valid Jinja"):
        ours("{% for %}").render([USER])


@pytest.mark.parametrize("place", ["config", "list", "file", "folder"])
def test_templates_are_found_in_the_model_folder(place: str, tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, "<s>")).save(str(tmp_path / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}}
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    if place == "config":
        config["chat_template"] = source
    elif place == "list":
        config["chat_template"] = [{"name": "default", "template": source}, {"name": "rag", "template": "R"}]
    else:
        config["chat_template"] = "overruled by the file"
        (tmp_path / "chat_template.jinja").write_text(source)
    if place == "folder":
        (tmp_path / "chat_templates").mkdir()
        (tmp_path / "chat_templates" / "rag.jinja").write_text("R")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = HFTokenizer.from_folder(tmp_path)
    assert tokenizer.chat_template == source
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "<s>hi</s>"
    if place in ("list", "folder"):
        assert tokenizer.apply_chat_template([USER], chat_template="rag") == "R"
