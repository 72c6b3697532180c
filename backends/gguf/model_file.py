"""A GGUF model as a whole: all its parts, its shape, and the checks that llama.cpp makes by aborting."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import msgspec

from ...errors import ModelFormatError
from ...scheduler.batch import Pooling
from ..models.gguf_names import choose_model, parts_of
from .gguf_file import GGUFFile, read_gguf

MAX_LAYERS = 512
MAX_EXPERTS = 1024
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
ENCODERS = frozenset(
    (
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
    )
)
"""Architectures that llama.cpp computes without a cache: every token sees all others."""
POOLINGS: Mapping[int, Pooling] = MappingProxyType({1: Pooling.MEAN, 2: Pooling.CLS, 3: Pooling.LAST})
"""ggml's numbers -> kinds."""
_NO_POOLING, _RANK = (0, (1 << 32) - 1), 4
SAMPLING_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "general.sampling.temp": "temperature",
        "general.sampling.top_k": "top_k",
        "general.sampling.top_p": "top_p",
        "general.sampling.min_p": "min_p",
        "general.sampling.penalty_repeat": "repetition_penalty",
    }
)
"""Keys with the author's recommendations -> the sampling parameters they are."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a model; per layer where they may differ."""

    context_length: int
    embedding_length: int
    feed_forward: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    """0 for a layer without a KV cache."""
    key_length: int
    value_length: int
    recurrent_state: int
    """Numbers that a layer without a KV cache keeps for each sequence; 0 where all layers have one."""

    @property
    def kv_per_token(self) -> int:
        """Numbers that all layers together keep for each token."""
        return sum(self.kv_heads) * (self.key_length + self.value_length)


class GGUFModel:
    """The headers of all parts of one model."""

    def __init__(self, files: tuple[GGUFFile, ...]) -> None:
        """Take over the parts, the first of which says what the model is.

        Raises:
            ModelFormatError: they are no whole language model, or hold numbers that make llama.cpp abort.
        """
        self.files = files
        self.header = files[0]
        self.path = self.header.path
        self._check_kind()
        self._check_parts()
        self._check_tokens()

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family."""
        return self.header.text("general.architecture") or ""

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.size for file in self.files for tensor in file.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for file in self.files for tensor in file.tensors)

    @property
    def tensor_type(self) -> str:
        """Name of the type that most bytes of the model are in, in lower case."""
        totals: dict[str, int] = {}
        for file in self.files:
            for tensor in file.tensors:
                totals[tensor.type.name] = totals.get(tensor.type.name, 0) + tensor.num_bytes
        return max(totals, key=lambda name: totals[name]).lower()

    @property
    def generation_defaults(self) -> dict[str, float]:
        """Sampling parameters that the model's author recommends."""
        said = {name: self.header.number(key) for key, name in SAMPLING_KEYS.items()}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only itself and those before it."""
        said = self.header.flag(f"{self.architecture}.attention.causal")
        return self.architecture not in ENCODERS and said is not False

    @property
    def has_cache(self) -> bool:
        """Whether llama.cpp keeps keys and values of the tokens that it has computed."""
        return self.architecture not in ENCODERS

    @property
    def is_reranker(self) -> bool:
        """Whether it scores pairs of texts."""
        return self._number("pooling_type") == _RANK

    @property
    def pooling(self) -> Pooling | None:
        """How an embedding model makes one vector of a text; None for a model that writes texts."""
        said = POOLINGS.get(self._number("pooling_type") or 0)
        return said if said is not None or self.is_causal else Pooling.MEAN

    @property
    def begins_texts_with_blank(self) -> bool:
        """Whether the first token of a text has a blank in front that is not the text's.

        WordPiece's tokens of words all have one, SentencePiece's by default.
        """
        said = self.header.flag("tokenizer.ggml.add_space_prefix")
        return self._tokenizer in ("llama", "bert") if said is None else said

    @property
    def missing_byte_tokens(self) -> int:
        """How many bytes a tokenizer that falls back to bytes has no token for."""
        tokens = self.header.strings("tokenizer.ggml.tokens")
        if tokens is None or self._tokenizer != "llama":
            return 0
        needed = {b"<0x%02X>" % byte: bytes([byte]) for byte in range(256)}
        present = {token for token in tokens if len(token) == 1 or token in needed}
        return sum(name not in present and byte not in present for name, byte in needed.items())

    @property
    def _tokenizer(self) -> str | None:
        """ "llama" for SentencePiece, "bert" for WordPiece, "gpt2" for merges of bytes, and others."""
        return self.header.text("tokenizer.ggml.model")

    @cached_property
    def shape(self) -> Shape:
        """The model's sizes.

        Raises:
            ModelFormatError: one is missing or impossible.
        """
        layers = self._required("block_count", 1, MAX_LAYERS)
        embedding = self._required("embedding_length", 1, 1 << 24)
        heads = self._per_layer("attention.head_count", layers) or (0,) * layers
        kv_heads = self._per_layer("attention.head_count_kv", layers) or heads
        head_size = embedding // max(heads) if max(heads) else 0
        self._check_experts(layers)
        self._check_rope()
        self._check_pooling()
        self._check_dense(embedding)
        predicting = self._number("nextn_predict_layers") or 0
        if not 0 <= predicting <= layers:
            raise self._damaged(f"{predicting} of its {layers} layers predict further tokens")
        return Shape(
            context_length=self._required("context_length", 1, (1 << 31) - 1),
            embedding_length=embedding,
            feed_forward=self._per_layer("feed_forward_length", layers) or (4 * embedding,) * layers,
            heads=heads,
            kv_heads=kv_heads,
            key_length=self._length("key_length", head_size),
            value_length=self._length("value_length", head_size),
            recurrent_state=self._recurrent_state(embedding),
        )

    def _number(self, key: str) -> int | None:
        return self.header.integer(f"{self.architecture}.{key}")

    def _required(self, key: str, least: int, most: int) -> int:
        value = self._number(key)
        if value is None:
            raise self._damaged(f"it has no {self.architecture}.{key}")
        if not least <= value <= most:
            raise self._damaged(f"{self.architecture}.{key} is {value}; allowed: {least} to {most}")
        return value

    def _per_layer(self, key: str, layers: int) -> tuple[int, ...] | None:
        values = self.header.integers(f"{self.architecture}.{key}", layers)
        if values is not None and not all(0 <= value < 1 << 31 for value in values):
            raise self._damaged(f"{self.architecture}.{key} is negative or too large")
        return values

    def _length(self, key: str, default: int) -> int:
        """Size of a head: the larger one where layers with a sliding window have their own."""
        values = [self._number(f"attention.{key}"), self._number(f"attention.{key}_swa")]
        found = [value for value in values if value is not None]
        if any(not 0 <= value <= 1 << 20 for value in found):
            raise self._damaged(
                f"{self.architecture}.attention.{key} is {max(found)}; allowed: at most {1 << 20}"
            )
        return max(found, default=default)

    def _recurrent_state(self, embedding: int) -> int:
        """As llama.cpp sizes it: RWKV's shifted tokens and products, or a convolution and Mamba's state."""
        wkv = self._number("wkv.head_size")
        if wkv is not None:
            return embedding * ((self._number("token_shift_count") or 2) + wkv)
        short = self._number("shortconv.l_cache")
        if short is not None:
            return embedding * short
        inner, state = self._number("ssm.inner_size") or 0, self._number("ssm.state_size") or 0
        groups, kernel = self._number("ssm.group_count") or 0, self._number("ssm.conv_kernel") or 1
        return (kernel - 1) * (inner + 2 * groups * state) + inner * state

    def _check_kind(self) -> None:
        kind = self.header.text("general.type") or "model"
        if kind != "model":
            raise ModelFormatError(f"{self.path} is no language model but a GGUF file of the type {kind!r}")
        if not self.architecture:
            raise self._damaged("it has no general.architecture")
        if not self.files[-1].tensors:
            raise ModelFormatError(f"{self.path} has no tensors: it is only a vocabulary, without weights")

    def _check_parts(self) -> None:
        count = self.header.integer("split.count") or 1
        if count != len(self.files):
            raise ModelFormatError(
                f"{self.path} is part of a model in {count} files, but by its name one of {len(self.files)}"
            )
        names: set[str] = set()
        for number, file in enumerate(self.files):
            if count > 1 and file.integer("split.no") != number:
                raise ModelFormatError(
                    f"{file.path} says that it is part {file.integer('split.no')}, but its name says {number}"
                )
            own = {tensor.name for tensor in file.tensors}
            if names & own:
                raise ModelFormatError(f"{file.path} repeats the tensor {min(names & own)!r} of another part")
            names |= own
        total = self.header.integer("split.tensors.count")
        if count > 1 and total != len(names):
            raise ModelFormatError(
                f"{self.path} announces {total} tensors, and its {count} parts have {len(names)}"
            )

    def _check_tokens(self) -> None:
        """llama.cpp aborts where two tokens have the same text; an empty one it names by its id."""
        tokens = self.header.strings("tokenizer.ggml.tokens")
        if tokens is None:
            return
        seen: set[bytes] = set()
        for number, token in enumerate(tokens):
            text = token or b"[EMPTY_%d]" % number
            if text in seen:
                raise self._damaged(f"its vocabulary has the token {text.decode(errors='replace')!r} twice")
            seen.add(text)

    def _check_experts(self, layers: int) -> None:
        experts = self._number("expert_count") or 0
        if experts <= 1 and self.architecture.startswith("hunyuan"):
            return  # llama.cpp takes these for dense models, whatever else is said
        used = max(self._per_layer("expert_used_count", layers) or (0,))
        groups, used_groups = (
            self._number("expert_group_count") or 0,
            self._number("expert_group_used_count") or 0,
        )
        fits = experts <= MAX_EXPERTS and used <= experts and (used > 0) == (experts > 0)
        if groups > 1:
            fits = fits and groups < experts and experts % groups == 0 and 0 < used_groups < groups
        if not fits or groups > max(experts - 1, 0):
            raise self._damaged(f"it uses {used} of {experts} experts in {used_groups} of {groups} groups")

    def _check_rope(self) -> None:
        scaling = self.header.text(f"{self.architecture}.rope.scaling.type")
        if scaling is not None and scaling not in ROPE_SCALINGS:
            raise self._damaged(f"its rope scaling is {scaling!r}; allowed: {', '.join(ROPE_SCALINGS)}")

    def _check_pooling(self) -> None:
        kind = self._number("pooling_type")
        if kind is not None and kind not in (*_NO_POOLING, *POOLINGS, _RANK):
            raise self._damaged(f"{self.architecture}.pooling_type is {kind}; allowed: 0 to {_RANK}")

    def _check_dense(self, embedding: int) -> None:
        """The layers that an embedding goes through at last fit each other, and lead back to its size."""
        width = embedding
        for layer in ("dense_2", "dense_3"):
            taken, given = self._number(f"{layer}_feat_in") or 0, self._number(f"{layer}_feat_out") or 0
            if (taken or given) and (taken != width or given <= 0):
                raise self._damaged(f"{layer} makes {given} numbers of {taken}, and there are {width}")
            width = given or width
        if width != embedding:
            raise self._damaged(f"its last layers make {width} numbers of {embedding}")

    def _damaged(self, why: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path} is damaged: {why}")


def read_model(path: Path) -> GGUFModel:
    """Read the headers of the model at `path`: a file, any part of a split one, or a folder that holds one.

    Raises:
        ModelFormatError: a part is missing or damaged, it is no language model, or the folder holds several.
    """
    if path.is_dir():
        names = [file.name for file in path.iterdir() if file.is_file()]
        path = path / choose_model(names, None, str(path)).first
    parts = [path.with_name(name) for name in parts_of(path.name)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing and len(parts) > 1:
        raise ModelFormatError(
            f"{path} is one of {len(parts)} parts of a model, of which {', '.join(missing[:4])}"
            f"{' and others' if len(missing) > 4 else ''} {'is' if len(missing) == 1 else 'are'} missing"
        )
    return GGUFModel(tuple(read_gguf(part) for part in parts))
