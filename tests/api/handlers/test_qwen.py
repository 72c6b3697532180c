"""Qwen: blocks of reasoning, in answers, in prompts and in the history."""

import pytest

from millstream.api.handlers import AnswerDelta

QWEN3 = """{% set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set content, thought = m.content, m.reasoning_content or '' %}
{%- if m.role == 'assistant' and not thought and '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
{%- endif %}
{{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}{% endif %}"""
ALWAYS = QWEN3.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")
CHATML = """{% for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TAGS = ("<think>", "</think>")
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **fields: str) -> dict[str, str]:
    return {"role": "assistant", "content": text, **fields}


@pytest.fixture
def handler(make_handler):
    return lambda template, plain=TAGS: make_handler("Qwen3ForCausalLM", template, plain=plain)


def test_an_answer_is_parted(handler) -> None:
    qwen = handler(QWEN3)
    splitter = qwen.reasoning(qwen.prompt([user("hi")]))
    assert splitter.split("<think>\nhm\n</think>\n\nHello") == AnswerDelta("hm", "Hello")
    splitter = qwen.reasoning(qwen.prompt([user("hi")]))
    assert splitter.split("Hello") == AnswerDelta("", "Hello")
    assert qwen.skip_special_tokens


def test_each_choice_has_a_splitter_of_its_own(handler) -> None:
    qwen = handler(QWEN3)
    prompt = qwen.prompt([user("hi")])
    first, second = qwen.reasoning(prompt), qwen.reasoning(prompt)
    first.push("<think>")
    assert first.in_reasoning and not second.in_reasoning


def test_the_template_may_have_begun_the_block(handler) -> None:
    qwen = handler(ALWAYS)
    prompt = qwen.prompt([user("hi")])
    assert qwen.tokenizer.decode(prompt, skip_special_tokens=False).endswith("<think>\n")
    assert qwen.reasoning(prompt).split("hm</think>Hello") == AnswerDelta("hm", "Hello")


def test_without_thinking_everything_is_content(handler) -> None:
    qwen = handler(QWEN3)
    prompt = qwen.prompt([user("hi")], template_variables={"enable_thinking": False})
    assert qwen.reasoning(prompt) is None


def test_what_users_write_about_tags_changes_nothing(handler) -> None:
    for template, words in (
        (QWEN3, "is <think>"),
        (QWEN3, "is </think>"),
        (CHATML, "is <think>" + "x" * 900),
    ):
        qwen = handler(template)
        splitter = qwen.reasoning(qwen.prompt([user(words)]))
        assert splitter.split("It is a tag.") == AnswerDelta("", "It is a tag.")
    qwen = handler(ALWAYS)
    assert qwen.reasoning(qwen.prompt([user("is </think>")])).in_reasoning


def test_blocks_of_earlier_answers_change_nothing(make_handler) -> None:
    chat = [user("a"), assistant("<think>hm</think>b"), user("c")]
    for begun in ("assistant\\n", "assistant (speaking)\\n"):
        other = CHATML.replace("'<|im_start|>assistant\\n'", f"'\\n<|im_start|>{begun}'")
        handler = make_handler("Unknown", other, plain=TAGS)
        assert handler.reasoning(handler.prompt(chat)).split("<think>d</think>e") == AnswerDelta("d", "e")


def test_an_answer_that_is_continued_goes_on_where_it_was(handler) -> None:
    qwen = handler(CHATML)

    def splitter(begun: str):
        return qwen.reasoning(qwen.prompt([user("hi"), assistant(begun)], **CONTINUE))

    assert splitter("<think>\nwell, " + "x" * 900).split("hm</think>a") == AnswerDelta("hm", "a")
    assert splitter("<think>hm</think>" + "x" * 900) is None
    assert splitter("Hel").split("lo") == AnswerDelta("", "lo")


def test_the_history_keeps_reasoning_as_the_template_says(handler, text_of) -> None:
    end = "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    for answer in (assistant("<think>\nhm\n</think>\n\nHello"), assistant("Hello", reasoning_content="hm")):
        text = text_of(handler(QWEN3), [user("a"), answer, user("b")])
        assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n" + end
        continued = text_of(handler(QWEN3), [user("a"), answer], **CONTINUE)
        assert continued.endswith("<|im_start|>assistant\n<think>\nhm\n</think>\n\nHello")


def test_where_the_template_knows_no_reasoning_old_turns_lose_it(handler, text_of) -> None:
    answer = assistant("<think>\nhm\n</think>\n\nHello")
    text = text_of(handler(CHATML), [user("a"), answer, user("b")])
    assert "hm" not in text
    assert "assistant\nHello<|im_end|>" in text
    assert text_of(handler(CHATML), [user("a"), answer], **CONTINUE).endswith("hm\n</think>\n\nHello")


def test_models_that_do_not_reason_have_no_splitter(handler) -> None:
    qwen = handler(CHATML, plain=())
    assert qwen.reasoning(qwen.prompt([user("hi")])) is None
