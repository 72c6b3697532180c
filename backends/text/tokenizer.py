"""HFTokenizer: the tokenizer of a model folder in the Hugging Face layout."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from ...errors import InvalidArgument, ModelFormatError, NotSupported
from ..worker import TextStream
from .chat_template import ChatTemplates
from .text_bound import TextBound
from .text_stream import TextDecoder

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OTHER_SOURCES = ("*.model", "*.tiktoken", "tekken.json", "vocab.json", "vocab.txt", "*.spm")
"""Files that transformers makes a tokenizer from where there is no tokenizer.json."""


class _NamedTemplate(msgspec.Struct, frozen=True):
    name: str
    template: str


class HFTokenizer:
    """A `tokenizers` pipeline with the chat templates and special tokens that come with the model.

    tokenizer.json decides about ids, as in transformers' AutoTokenizer, also about begin- and end-of-sequence
    tokens: `add_bos_token` and `add_eos_token` of tokenizer_config.json count only where it is missing.
    For tokenizers of the class LlamaTokenizer alone transformers puts a pipeline of its own in place of the
    file's, which can differ in blanks at the start of a text and behind special tokens.

    The pipeline is never changed after loading, so it is safe to use from several threads.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
        eos_token_ids: Sequence[int] = (),
        vocab_size: int = 0,
    ) -> None:
        """Take over `tokenizer`, which nobody may change any more.

        Args:
            special_tokens: text of the named tokens ("bos_token", …), for chat templates.
            chat_templates: template sources by name; the one used by default is "default".
            eos_token_ids: the model's end-of-sequence ids; by default the one of the named "eos_token".
            vocab_size: number of ids the model may produce, where that is more than the tokenizer has.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._bound = TextBound(tokenizer)
        self._decoder = TextDecoder(tokenizer, vocab_size)
        self._templates = ChatTemplates(chat_templates, special_tokens)
        self.chat_template: str | None = self._templates.default
        self.chat_template_names = self._templates.names
        self.eos_token_ids: tuple[int, ...] = tuple(eos_token_ids)
        if not self.eos_token_ids and "eos_token" in special_tokens:
            token_id = tokenizer.token_to_id(special_tokens["eos_token"])
            self.eos_token_ids = () if token_id is None else (token_id,)

    @classmethod
    def from_folder(cls, path: Path, eos_token_ids: Sequence[int] = ()) -> "HFTokenizer":
        """Load the tokenizer of the model in folder `path`.

        tokenizer.json is read directly; only where it is missing, transformers converts what there is.

        Raises:
            ModelFormatError: there is no tokenizer, or a file of it cannot be read.
            NotSupported: converting needs a package that is not installed.
        """
        path = Path(path)
        config = _read_object(path / "tokenizer_config.json")
        model = _read_object(path / "config.json")
        if (path / "tokenizer.json").is_file():
            tokenizer = _read_tokenizer(path / "tokenizer.json")
            special_tokens = _add_tokens(tokenizer, config, _read_object(path / "special_tokens_map.json"))
        else:
            tokenizer, special_tokens = _convert(path)
        tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
        text_model = model.get("text_config")
        sizes = (model, text_model if isinstance(text_model, dict) else {})
        return cls(
            tokenizer,
            special_tokens=special_tokens,
            chat_templates=_chat_templates(path, config),
            eos_token_ids=eos_token_ids,
            vocab_size=max(size.get("vocab_size") or 0 for size in sizes),
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the model's own begin-of-sequence rule unless told otherwise.

        Other threads run meanwhile: the pipeline's `encode` would hold the interpreter's lock for the whole
        text, and its batches let go of it.

        Raises:
            InvalidArgument: `text` is no string, or holds half of a surrogate pair.
        """
        if not isinstance(text, str):
            raise InvalidArgument("text", text, "a string")
        try:
            (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError as error:
            half = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
            if half is None:
                raise
            raise InvalidArgument(
                "text", half, "characters of Unicode, no half of a surrogate pair"
            ) from error
        ids: list[int] = encoded.ids
        return ids

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens in `text`, from its bytes alone; see TextBound."""
        return self._bound.fewest_tokens(text)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`.

        Raises:
            InvalidArgument: an id lies outside of the vocabulary.
        """
        return self._decoder.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """A new incremental decoder; its pieces joined equal `decode` of the same ids."""
        return self._decoder.stream(skip_special_tokens=skip_special_tokens)

    def to_json(self) -> str:
        """The whole pipeline, tokens that only other files name included, in the form of tokenizer.json."""
        text: str = self._tokenizer.to_str()
        return text

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


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelFormatError(f"{path} is not a JSON object: {error}") from error


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for every kind of damage
        raise ModelFormatError(f"{path} is no tokenizer that can be read: {error}") from error


def _add_tokens(tokenizer: Tokenizer, config: dict[str, Any], legacy: dict[str, Any]) -> dict[str, str]:
    """Add the tokens that only tokenizer_config.json knows, as transformers does, and name the special ones.

    `legacy` is special_tokens_map.json, which counts where the configuration lists no tokens of its own.
    """
    listed: dict[str, Any] = config.get("added_tokens_decoder") or {}
    named = config if listed else {**config, **legacy}
    present = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    tokens = [
        _added_token(token, special=False) for _, token in sorted(listed.items(), key=lambda i: int(i[0]))
    ]
    tokenizer.add_tokens([token for token in tokens if repr(token) not in present])

    names = (*_NAMED_TOKENS, *(key for key in named if key.endswith("_token") and key not in _NAMED_TOKENS))
    special = {name: named[name] for name in names if isinstance(named.get(name), (str, dict))}
    extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        special |= extra
        extra = []
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [_added_token(token, special=True) for token in (*special.values(), *extra)]
    tokenizer.add_tokens([token for token in missing if token.content not in known])
    return {name: _content(token) for name, token in special.items()}


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _added_token(token: str | dict[str, Any], *, special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special)
    flags = {key: value for key, value in token.items() if key not in ("content", "__type")}
    return AddedToken(token["content"], **{**flags, "special": special or bool(flags.get("special"))})


def _chat_templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Template sources by name; files go before what tokenizer_config.json holds."""
    inside = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(inside, str):
        templates["default"] = inside
    elif inside is not None:
        templates |= {entry.name: entry.template for entry in _named_templates(path, inside)}
    files = {"default": path / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((path / "chat_templates").glob("*.jinja"))}
    templates |= {name: _read_text(file) for name, file in files.items() if file.is_file()}
    return templates


def _named_templates(path: Path, value: object) -> list[_NamedTemplate]:
    try:
        return msgspec.convert(value, list[_NamedTemplate])
    except msgspec.ValidationError as error:
        raise ModelFormatError(
            f"chat_template of {path / 'tokenizer_config.json'} is wrong: {error}"
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text: {error}") from error


def _convert(path: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Make a tokenizer from older files, through transformers."""
    sources = sorted({file.name for pattern in _OTHER_SOURCES for file in path.glob(pattern)})
    if not sources:
        raise ModelFormatError(
            f"{path} has no tokenizer: neither tokenizer.json nor {', '.join(_OTHER_SOURCES)}"
        )
    needed = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
    missing = [package for module, package in needed.items() if not _is_installed(module)]
    if missing and all(name.endswith((".model", ".spm")) for name in sources):
        raise NotSupported(
            f"{path} has no tokenizer.json, and converting {', '.join(sources)} needs packages that are "
            f"not installed: pip install {' '.join(missing)}"
        )
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # transformers raises many kinds for files it cannot read
        raise ModelFormatError(
            f"{path} has no tokenizer.json, and {', '.join(sources)} failed: {error}"
        ) from error
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if tokenizer is None:
        raise ModelFormatError(
            f"{path} has a {type(loaded).__name__}, which has no fast form; tokenizer.json is needed"
        )
    return tokenizer, dict(loaded.special_tokens_map)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
