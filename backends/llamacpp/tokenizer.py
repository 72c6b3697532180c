"""GGUFTokenizer: the tokenizer inside a GGUF file, run by llama.cpp."""

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import InvalidArgument, ModelFormatError
from ..gguf.gguf_file import GGUFFile
from ..gguf.model_file import GGUFModel
from ..text.byte_count import count_bytes
from ..text.chat_template import ChatTemplates
from ..worker import TextStream
from .vocabulary import Vocabulary

_TEMPLATE = "tokenizer.chat_template"
_NO_UNICODE = "characters of Unicode, no half of a surrogate pair"


class GGUFTokenizer:
    """Text to token ids and back as llama.cpp does it, with the chat templates of the file.

    The vocabulary is never changed after loading, so it is safe to use from several threads.
    """

    def __init__(
        self, vocabulary: Vocabulary, templates: Mapping[str, str], *, begins_with_blank: bool
    ) -> None:
        """Take over `vocabulary`.

        Args:
            templates: chat templates by name; the one used by default is "default".
            begins_with_blank: texts get a blank in front before they are cut into tokens.
        """
        self._vocabulary = vocabulary
        self._begins_with_blank = begins_with_blank
        self._templates = ChatTemplates(templates, vocabulary.special_tokens)
        self.chat_template: str | None = self._templates.default
        self.chat_template_names = self._templates.names
        self.eos_token_ids: tuple[int, ...] = vocabulary.eos_token_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; special tokens written out in it become their ids.

        Raises:
            InvalidArgument: `text` is no string, holds half of a surrogate pair, or has more than 4 MiB.
        """
        if not isinstance(text, str):
            raise InvalidArgument("text", text, "a string")
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument("text", text[error.start], _NO_UNICODE) from error
        return self._vocabulary.encode(data, add_special_tokens=add_special_tokens)

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens in `text`, from its bytes alone; 0 where there is none."""
        longest = self._vocabulary.longest_token
        if longest is None:
            return 0
        # Blanks beside a special token may be taken away.
        return -(-count_bytes(text, without_blanks=True) // longest)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InvalidArgument: an id lies outside of the vocabulary.
        """
        stream = self.stream(skip_special_tokens=skip_special_tokens)
        return "".join([*map(stream.push, token_ids), stream.flush()])

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """A new incremental decoder; its pieces joined equal `decode` of the same ids."""
        return _PieceStream(self._vocabulary, skip_special_tokens, self._begins_with_blank)

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """Prompt text of a conversation; the keywords are those of `ChatTemplates.render`.

        The text holds its special tokens already: encode it with `add_special_tokens=False`.

        Raises:
            NotSupported: the model has no chat template.
            InvalidArgument: the template refuses the conversation.
        """
        return self._templates.render(messages, add_generation_prompt=add_generation_prompt, **kwargs)


class _PieceStream:
    """Joins the bytes of tokens and gives out whole characters."""

    def __init__(self, vocabulary: Vocabulary, skip_special_tokens: bool, begins_with_blank: bool) -> None:
        self._vocabulary = vocabulary
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drops_blank = begins_with_blank
        """The next token with a text is the first, and the blank it may begin with is not the text's own."""

    def push(self, token_id: int) -> str:
        """Text that has become certain with this token.

        Raises:
            InvalidArgument: the id lies outside of the vocabulary.
        """
        piece, is_special = self._vocabulary.token(token_id)
        if is_special and self._skip:
            return ""
        if self._drops_blank and piece:
            self._drops_blank = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """Text still held back; a second call gives nothing."""
        return self._utf8.decode(b"", final=True)


def load_tokenizer(model: GGUFModel, vocabulary: Vocabulary) -> GGUFTokenizer:
    """The tokenizer of `model`, whose `vocabulary` is loaded already.

    Raises:
        ModelFormatError: the file has none, or one with which llama.cpp would abort on some texts.
    """
    if not vocabulary.has_tokens:
        raise ModelFormatError(f"{model.path} has no tokenizer")
    if vocabulary.lacks_added_tokens:
        raise ModelFormatError(f"{model.path} lacks the tokens that its tokenizer puts around a text")
    if model.missing_byte_tokens:
        raise ModelFormatError(
            f"{model.path} has no tokens for {model.missing_byte_tokens} of the 256 bytes, so that not every "
            "text can be cut into tokens"
        )
    return GGUFTokenizer(
        vocabulary, chat_templates(model.header), begins_with_blank=model.begins_texts_with_blank
    )


def chat_templates(header: GGUFFile) -> dict[str, str]:
    """Sources of the file's chat templates by name; the first key's is "default"."""
    named = {
        key.removeprefix(f"{_TEMPLATE}."): header.text(key)
        for key in header.metadata
        if key.startswith(f"{_TEMPLATE}.")
    }
    found = {**named, "default": header.text(_TEMPLATE)}
    return {name: source for name, source in found.items() if source is not None}
