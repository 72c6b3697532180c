"""Chat templates: a conversation rendered to prompt text by the model's own Jinja template, in a sandbox.

Templates come with models from strangers. They run in Jinja's immutable sandbox, with the functions and
filters that transformers documents for them, and see nothing but plain JSON values.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...errors import InvalidArgument, ModelFormatError, NotSupported

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import SandboxedEnvironment

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_MAX_FOREIGN = 16
"""Compiled templates kept that are not the model's own."""
_CONTINUE_MARK = "\ue000CONTINUE\ue000 "
"""Stands at the end of a message that is to be continued; its last blank shows whether the template trims."""


class ChatTemplates:
    """The named chat templates of one model ("default", "tool_use", …) and the special tokens they may use.

    Jinja is imported when the first conversation is rendered. Safe to use from several threads.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._sources = dict(templates)
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, Template] = {}
        self._foreign: dict[str, Template] = {}

    @property
    def default(self) -> str | None:
        """Source of the template used when nothing else is asked for."""
        return self._sources.get("default")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model's templates."""
        return tuple(sorted(self._sources))

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Prompt text of a conversation.

        Args:
            messages: each with "role" and whatever else the template reads; None counts as absent.
            tools: functions the model may call, as JSON schemas.
            documents: texts for retrieval, each with "title" and "text".
            chat_template: the name of one of the model's templates, or the source of another one.
            continue_final_message: end inside the last message, so that the model goes on with it.
            variables: anything else the template reads, for example `enable_thinking`.

        Raises:
            NotSupported: the model has no chat template and none is given.
            InvalidArgument: the template refuses the conversation, or an argument is no plain JSON value.
            ModelFormatError: the model's template is no valid Jinja.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidArgument("add_generation_prompt", True, "False with continue_final_message")
        template = self._template(chat_template, tools is not None)
        chat = _conversation(messages)
        if continue_final_message:
            _mark_end(chat)
        scope = {
            **self._special_tokens,
            **_plain("variables", variables),
            "messages": chat,
            "tools": _plain("tools", tools),
            "documents": _plain("documents", documents),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text = template.render(scope)
        except Exception as error:  # a template is foreign code and may raise whatever it likes
            roles = tuple(message.get("role") for message in chat)
            raise InvalidArgument("messages", roles, f"what the chat template accepts ({error})") from error
        return _cut_at_mark(text) if continue_final_message else text

    def _template(self, wanted: str | None, has_tools: bool) -> "Template":
        if wanted is not None and wanted not in self._sources:
            return self._compile_foreign(wanted)
        name = wanted or ("tool_use" if has_tools and "tool_use" in self._sources else "default")
        if name not in self._sources:
            others = f"; it has {', '.join(sorted(self._sources))}" if self._sources else ""
            kind = "" if name == "default" else f"{name} "
            raise NotSupported(
                f"the model has no {kind}chat template{others}: pass chat_template or plain text"
            )
        if name not in self._compiled:
            from jinja2 import TemplateError

            try:
                self._compiled[name] = self._environment.from_string(self._sources[name])
            except TemplateError as error:
                raise ModelFormatError(
                    f"the model's {name} chat template is not valid Jinja: {error}"
                ) from error
        return self._compiled[name]

    def _compile_foreign(self, source: str) -> "Template":
        from jinja2 import TemplateError

        if source in self._foreign:
            return self._foreign[source]
        try:
            compiled = self._environment.from_string(source)
        except TemplateError as error:
            names = ", ".join(sorted(self._sources)) or "none"
            allowed = f"valid Jinja or a name of the model's templates ({names}): {error}"
            raise InvalidArgument("chat_template", source, allowed) from error
        if len(self._foreign) >= _MAX_FOREIGN:
            self._foreign.clear()
        self._foreign[source] = compiled
        return compiled

    @cached_property
    def _environment(self) -> "SandboxedEnvironment":
        from .template_sandbox import make_environment

        return make_environment()


def _conversation(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A copy of `messages` as templates expect it: no None values, reasoning under its usual names."""
    if not messages:
        raise InvalidArgument("messages", messages, "a list of at least one message")
    chat: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise InvalidArgument("messages", message, "mappings with a role and a content")
        plain = {key: value for key, value in _plain("messages", message).items() if value is not None}
        reasoning = next((plain[key] for key in _REASONING_KEYS if key in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        chat.append(plain)
    return chat


def _plain(parameter: str, value: Any) -> Any:
    """A deep copy made of nothing but JSON's types, without any methods of subclasses.

    Raises:
        InvalidArgument: there is something else in it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(parameter, key): _plain(parameter, inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(parameter, inner) for inner in value]
    raise InvalidArgument(
        parameter, value, "plain JSON values: text, numbers, booleans, None, lists, mappings"
    )


def _mark_end(chat: list[dict[str, Any]]) -> None:
    """Put the mark behind the text of the last message, in place."""
    content = chat[-1].get("content")
    if isinstance(content, str):
        chat[-1]["content"] = content + _CONTINUE_MARK
        return
    texts = [part for part in content if isinstance(part, dict) and "text" in part] if content else []
    if not texts:
        raise InvalidArgument("continue_final_message", True, "False where the last message has no text")
    texts[-1]["text"] += _CONTINUE_MARK


def _cut_at_mark(text: str) -> str:
    """What stands before the mark; blanks at its end go where the template trims messages."""
    before, mark, after = text.rpartition(_CONTINUE_MARK.strip())
    if not mark:
        raise InvalidArgument(
            "continue_final_message",
            True,
            "False where the chat template leaves out the end of the last message",
        )
    return before if after.startswith(" ") else before.rstrip()
