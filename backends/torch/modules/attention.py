"""Paged attention for transformers' attention interface: what a module asks for, and how it is answered.

transformers lets a model call any function that is registered under the name in its configuration. Two names
are registered here. `PROBE` runs the model once over two tokens far along a sequence and notes, for every
attention module in call order, its shapes, its scale and the mask that the model itself builds for those two
tokens. `PAGED` has no mask function, so transformers builds no mask, and answers from the paged cache.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ....errors import NotSupported
from ..kernels.interface import AttentionSpec, KVShape, PagedKV
from ..kernels.step_inputs import StepInputs

PAGED = "millstream_paged"
PROBE = "millstream_probe"

_HARMLESS = frozenset({"position_ids", "cache_position", "position_embeddings", "is_causal", "dropout"})
"""Keyword arguments of an attention call that repeat what positions, mask or rotated queries already say."""


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """The place of one attention module in the cache, and how it attends."""

    index: int
    shape: KVShape
    spec: AttentionSpec


class Attends(Protocol):
    """What answers the attention calls of a forward pass."""

    def call(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: Mapping[str, Any],
    ) -> Tensor:
        """Attention of one module: `query` [1, heads, T, dim] to [1, T, heads, value dim]."""


_ANSWERING: ContextVar[Attends] = ContextVar("answering")
"""Who answers in this context. Some classes hand no keyword argument down to their attention."""


@contextmanager
def answered_by(attends: Attends) -> Iterator[None]:
    """Attention calls inside the block go to `attends`."""
    token = _ANSWERING.set(attends)
    try:
        yield
    finally:
        _ANSWERING.reset(token)


class PagedStep:
    """Answers the attention calls of one step from the paged cache."""

    def __init__(self, layers: Mapping[nn.Module, PagedLayer], kv: PagedKV, inputs: StepInputs) -> None:
        self._layers = layers
        self._kv = kv.step(inputs)
        self.positions = inputs.positions

    @staticmethod
    def current() -> "PagedStep":
        """The step that is being computed.

        Raises:
            RuntimeError: there is none.
        """
        step = _ANSWERING.get(None)
        if not isinstance(step, PagedStep):
            raise RuntimeError("paged attention was called outside a step")
        return step

    def call(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: Mapping[str, Any],
    ) -> Tensor:
        """See Attends. The probe has read what mask and options say; every step says the same."""
        return self.attend(self._layers[module], query, key, value)

    def attend(self, layer: PagedLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write key and value [1, kv heads, T, dim], then attend; gives [1, T, heads, value dim]."""
        dtype = value.dtype
        self._kv.write(layer.index, key[0].transpose(0, 1).to(dtype), value[0].transpose(0, 1))
        return self._kv.attend(layer.index, query[0].transpose(0, 1).to(dtype), layer.spec).unsqueeze(0)


class Probe:
    """Notes every attention call of one forward pass and answers it with zeros."""

    def __init__(self, architecture: str) -> None:
        self.layers: dict[nn.Module, PagedLayer] = {}
        self._architecture = architecture

    def call(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: Mapping[str, Any],
    ) -> Tensor:
        """See Attends.

        Raises:
            NotSupported: the call asks for something that the paged cache cannot answer.
        """
        if module in self.layers:
            raise self._refusal("calls one attention module twice in a pass")
        if key.shape[2] != query.shape[2] or value.shape[2] != query.shape[2]:
            raise self._refusal("attends to keys that are not those of its tokens")
        options = {name: option for name, option in options.items() if option is not None}
        scale = options.pop("scaling", query.shape[-1] ** -0.5)
        softcap = options.pop("softcap", None) or None
        sinks = options.pop("s_aux", None)
        options.pop("sliding_window", None)  # the mask says the same, for this layer and this configuration
        if isinstance(scale, Tensor) or isinstance(softcap, Tensor):
            raise self._refusal("scales its attention by a tensor")
        unknown = sorted(name for name, option in options.items() if _matters(name, option))
        if unknown:
            raise self._refusal(f"passes {', '.join(unknown)} to its attention")
        if sinks is not None:
            raise self._refusal("has attention sinks")
        shape = KVShape(num_kv_heads=key.shape[1], key_dim=key.shape[3], value_dim=value.shape[3])
        spec = AttentionSpec(scale=scale, window=self._window(mask), softcap=softcap)
        self.layers[module] = PagedLayer(len(self.layers), shape, spec)
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])

    def _window(self, mask: Tensor | None) -> int | None:
        """The sliding window, from the mask rows of the last two of `length` positions; None: all is seen."""
        if mask is None or mask.dtype != torch.bool or mask.shape[:3] != (1, 1, 2):
            raise self._refusal("builds its attention mask in code of its own")
        length = mask.shape[3]
        before, last = mask[0, 0]
        seen = int(last.sum())
        position = torch.arange(length, device=mask.device)
        window = None if seen == length else seen
        expected = [_visible(position, row, window) for row in (length - 2, length - 1)]
        if not (torch.equal(before, expected[0]) and torch.equal(last, expected[1])):
            raise self._refusal("has an attention mask that is neither causal nor a sliding window")
        return window

    def _refusal(self, reason: str) -> NotSupported:
        return NotSupported(f"{self._architecture} cannot run on the paged cache: it {reason}")


def probe_layers(model: PreTrainedModel, max_length: int) -> dict[nn.Module, PagedLayer]:
    """Every attention module of `model`, in call order; the model is left on the name `PAGED`.

    Windows of `max_length` tokens and more count as none.

    Raises:
        NotSupported: some module attends in a way that the paged cache cannot answer.
    """
    length = max(max_length, 2)
    probe = Probe(type(model).__name__)
    positions = torch.arange(length - 2, length, device=model.device).unsqueeze(0)
    model.set_attn_implementation(PROBE)
    with answered_by(probe):
        model(
            input_ids=torch.zeros_like(positions),
            position_ids=positions,
            attention_mask=torch.ones(1, length, dtype=torch.long, device=model.device),
            use_cache=False,
        )
    model.set_attn_implementation(PAGED)
    return probe.layers


def register() -> None:
    """Make both names known to transformers; doing it again changes nothing."""
    AttentionInterface.register(PAGED, _attention)
    AttentionInterface.register(PROBE, _attention)
    AttentionMaskInterface.register(PROBE, _last_two_rows)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls."""
    return _ANSWERING.get().call(module, query, key, value, attention_mask, options), None


def _last_two_rows(
    kv_length: int, mask_function: Callable[..., Tensor], device: torch.device, **_: Any
) -> Tensor:
    """[1, 1, 2, kv_length] bool: keys that the last two of `kv_length` positions see, as the model says."""
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    keys = torch.arange(kv_length, device=device)
    rows = mask_function(zero, zero, keys[-2:].view(1, 1, 2, 1), keys.view(1, 1, 1, kv_length))
    return rows.expand(1, 1, 2, kv_length)


def _visible(keys: Tensor, position: int, window: int | None) -> Tensor:
    """Which of `keys` a causal query at `position` sees through `window`."""
    seen = keys <= position
    return seen if window is None else seen & (keys > position - window)


def _matters(name: str, option: object) -> bool:
    """Whether an option of an attention call could change its result."""
    if name in _HARMLESS:
        return False
    return isinstance(option, Tensor) or bool(option)
