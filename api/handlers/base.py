"""ModelHandler: what stands between the messages of a request and one model; families derive from it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from ...backends.worker import ModelInfo, Tokenizer
from ...errors import InvalidArgument, LimitExceeded, ModelFormatError
from .answer_parser import AnswerParser, ReasoningTokens
from .messages import Message, read_messages
from .reasoning import ReasoningSplitter, ReasoningTags
from .template_profile import TemplateProfile, fit, profile_template

_RESERVED = ("self", "messages", "add_generation_prompt", "continue_final_message", "chat_template")
"""Names of the template's variables that have a way of their own into it."""
_TAIL_TOKENS = 64
"""Tokens at the end of a prompt in which an assistant's header is looked for first."""
_MAX_PROFILES = 16


class ModelHandler:
    """Messages to token ids, and the way back, for a model of no special family.

    The chat template says nearly everything about a model, so it is asked before the family is: which
    conversations it takes (TemplateProfile), what ends a turn, and whether there is reasoning.
    A handler keeps no state of requests and is safe to use from several threads.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    """Names in `ModelInfo.architecture`: the classes of configurations, and the names in GGUF files."""
    end_tokens: ClassVar[tuple[str, ...]] = ()
    """Special tokens that end this family's turns, as far as a model has them."""
    known_tags: ClassVar[tuple[ReasoningTags, ...]] = (
        ReasoningTags("<think>", "</think>"),
        ReasoningTags("[THINK]", "[/THINK]"),
    )
    """Tags that a model's reasoning may stand between; the first pair that the model knows counts."""

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        """`chat_template` (Jinja source, or the name of one of the model's) replaces the model's own.

        Raises:
            InvalidArgument: `chat_template` is no valid Jinja.
        """
        self.info = info
        self.tokenizer = tokenizer
        self._chat_template = chat_template
        self._profiles: dict[str | None, TemplateProfile] = {}
        if chat_template is not None:
            self._profile(chat_template)

    @classmethod
    def fits(cls, info: ModelInfo, chat_template: str | None) -> bool:
        """Whether this handler is for the model, where several families share an architecture's name."""
        return True

    def preprocess(self, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        """The messages, checked and in the family's form, one for each.

        Raises:
            InvalidArgument: one of them is not allowed; the parameter says which ("messages[2].content").
        """
        return read_messages(messages)

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        most_tokens: int | None = None,
    ) -> list[int]:
        """Token ids of a conversation.

        Args:
            messages: as they stand in the JSON of a request.
            add_generation_prompt: end where the assistant's answer begins.
            continue_final_message: end inside the last message, so that the model goes on with it.
            chat_template: Jinja source, or the name of one of the model's templates, for this conversation.
            template_variables: whatever else the template reads, for example `enable_thinking`.
            most_tokens: a text that is sure to have more is not made tokens of.

        Raises:
            InvalidArgument: a message is wrong, or the template refuses the conversation.
            LimitExceeded: the text has more than `most_tokens` tokens by its size alone.
            NotSupported: there is no chat template.
        """
        variables = _checked_variables(template_variables)
        template = self._chat_template if chat_template is None else chat_template
        chat = fit(self.preprocess(messages), self._profile(template))
        try:
            text = self.tokenizer.apply_chat_template(
                chat,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template=template,
                **variables,
            )
        except RecursionError as error:
            raise InvalidArgument("messages", "nested values", "values that are nested less deep") from error
        check_size(self.tokenizer, text, most_tokens)
        return self._encode(text)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer beyond the model's own end-of-sequence ids.

        Checkpoints often name the end of texts alone. The end of a turn is the special token that the chat
        template writes behind an assistant's message, and what the family has for it.
        """
        names = [self.tokenizer.encode(name, add_special_tokens=False) for name in self.end_tokens]
        found = [ids[0] for ids in names if len(ids) == 1]
        if turn_end := self._turn_end():
            found.append(self.tokenizer.encode(turn_end, add_special_tokens=False)[0])
        own = self.info.eos_token_ids
        return tuple(dict.fromkeys(i for i in found if i not in own and self._is_special(i)))

    @cached_property
    def reasoning_tags(self) -> ReasoningTags | None:
        """The tags that the model's own template or its vocabulary knows; None where they know none."""
        template = self.tokenizer.chat_template or ""
        for tags in self.known_tags:
            if tags.end in template or all(self._is_one_token(tag) for tag in (tags.begin, tags.end)):
                return tags
        return None

    @cached_property
    def skip_special_tokens(self) -> bool:
        """False where the tags of reasoning are special tokens, so that the text must hold special tokens."""
        tags = self.reasoning_tags
        if tags is None:
            return True
        ids = self.tokenizer.encode(tags.end, add_special_tokens=False)
        return self.tokenizer.decode(ids) != ""

    @cached_property
    def sampling_defaults(self) -> dict[str, Any]:
        """Fields of SamplingParams: what the model's author recommends, and what its handler has found."""
        fields = dict(self.info.generation_defaults)
        if self.stop_token_ids:
            fields["eos_token_ids"] = (*self.info.eos_token_ids, *self.stop_token_ids)
        if not self.skip_special_tokens:
            fields["skip_special_tokens"] = False
        return fields

    def answer_parser(
        self, prompt_ids: Sequence[int], *, counts: bool = False, skip_special_tokens: bool = True
    ) -> AnswerParser:
        """A new parser for one output of this prompt.

        With `counts` it counts tokens of reasoning; the output's text then skips special tokens or does not.
        """
        tokens = None
        if counts:
            stream = self.tokenizer.stream(skip_special_tokens=skip_special_tokens)
            tokens = ReasoningTokens(self.reasoning(prompt_ids), stream)
        return AnswerParser(self.reasoning(prompt_ids), tokens)

    def reasoning(self, prompt_ids: Sequence[int]) -> ReasoningSplitter | None:
        """A new splitter for one output of this prompt; None where there is no reasoning to part.

        The prompt may end inside of a block that the template, or a message to be continued, has begun; then
        the output begins with reasoning. Behind a block that has ended, all of it is content.
        """
        tags = self.reasoning_tags
        if tags is None:
            return None
        begun = self._begun_answer(prompt_ids, tags).strip()
        if tags.begin not in begun:
            return ReasoningSplitter(tags)
        is_open = begun.rfind(tags.begin) > begun.rfind(tags.end)
        return ReasoningSplitter(tags, opened=True) if is_open else None

    def _begun_answer(self, prompt_ids: Sequence[int], tags: ReasoningTags) -> str:
        """The block of reasoning that the turn at the prompt's end begins with, and what follows it.

        Found behind the last header of an assistant. Where there is no header to be found, only a tag at the
        very end is sure to be no word of a user's. Empty where there is no block.
        """
        header, turn_end = self._assistant_header(tags), self._turn_end().strip()
        size = _TAIL_TOKENS
        while True:
            tail = self.tokenizer.decode(prompt_ids[-size:], skip_special_tokens=False)
            _, found, begun = tail.rpartition(header) if header else ("", "", tail)
            is_over = bool(turn_end) and turn_end in begun
            if found and not is_over:
                return begun if begun.lstrip().startswith(tags.begin) else ""
            if size >= len(prompt_ids) or not header or is_over:
                return tags.begin if tail.rstrip().endswith(tags.begin) else ""
            size *= 8

    def _assistant_header(self, tags: ReasoningTags) -> str:
        """The line before an assistant's text, without the block that some templates write behind it."""
        if self._own_profile is None:
            return ""
        header, _, _ = self._own_profile.assistant_header.partition(tags.begin)
        return header.strip().rpartition("\n")[2].strip()

    def _turn_end(self) -> str:
        profile = self._own_profile
        return "" if profile is None else profile.turn_end.lstrip()

    @cached_property
    def _own_profile(self) -> TemplateProfile | None:
        """Of the template that is used by default; None where there is none that can be used."""
        if self.tokenizer.chat_template is None and self._chat_template is None:
            return None
        try:
            return self._profile(self._chat_template)
        except ModelFormatError:  # its first conversation says so; texts need no template
            return None

    def _profile(self, template: str | None) -> TemplateProfile:
        found = self._profiles.get(template)
        if found is None:
            found = profile_template(
                lambda chat: self.tokenizer.apply_chat_template(
                    chat, add_generation_prompt=False, chat_template=template
                )
            )
            if len(self._profiles) >= _MAX_PROFILES:
                self._profiles.clear()
            self._profiles[template] = found
        return found

    def _encode(self, text: str) -> list[int]:
        """Token ids of a rendered conversation, with its special tokens; never two that begin a sequence."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        while len(ids) > 1 and ids[0] == ids[1] == self._bos_token_id:
            del ids[0]
        return ids

    @cached_property
    def _bos_token_id(self) -> int | None:
        """What the tokenizer puts before a text by itself."""
        added = self.tokenizer.encode("", add_special_tokens=True)
        return added[0] if added and added[0] not in self.tokenizer.eos_token_ids else None

    def _is_one_token(self, text: str) -> bool:
        return len(self.tokenizer.encode(text, add_special_tokens=False)) == 1

    def _is_special(self, token_id: int) -> bool:
        shown = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return bool(shown) and not self.tokenizer.decode([token_id], skip_special_tokens=True)


def check_size(tokenizer: Tokenizer, text: str, most_tokens: int | None) -> None:
    """Raise LimitExceeded where a text has more tokens than it may, by its size alone; None sets no bound."""
    if most_tokens is None or (fewest := tokenizer.fewest_tokens(text)) <= most_tokens:
        return
    message = (
        f"the prompt has {len(text)} characters, which are at least {fewest} tokens; allowed: {most_tokens}"
    )
    raise LimitExceeded(message, "prompt")


def _checked_variables(variables: Mapping[str, Any] | None) -> Mapping[str, Any]:
    for name in variables or {}:
        if not isinstance(name, str) or name in _RESERVED:
            raise InvalidArgument("template_variables", name, f"names other than {', '.join(_RESERVED)}")
    return variables or {}
