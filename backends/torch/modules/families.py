"""Paged attention modules for families whose transformers code computes attention without the interface.

Each class here takes the place of one attention module: it projects with the weights of the module it holds
and leaves scores, softmax and cache to PagedStep. The model around it stays as it is.

Linear position biases (ALiBi, Press et al. 2022) need no kernel of their own: a score grows by slope * s for
a key at position s, a product of further elements of the query (the slope) and of the key (the position).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom_alibi
from transformers.models.codegen.modeling_codegen import apply_rotary_pos_emb as rotate_neighbours
from transformers.models.falcon import modeling_falcon
from transformers.models.mpt import modeling_mpt

from ..kernels.interface import AttentionSpec, KVShape
from .attention import PAGED, PagedLayer, PagedStep
from .config import ALIBI_DIMS, has_alibi

rotate_halves: Any = modeling_falcon.apply_rotary_pos_emb
mpt_alibi: Any = modeling_mpt.build_mpt_alibi_tensor

_POSITION_STEP = 256
"""Positions are split by it into two numbers that every dtype holds exactly (up to 65535)."""


class PagedModule(nn.Module):
    """An attention module of one family, on the paged cache."""

    def __init__(self, inner: Any, index: int, slopes: Tensor | None) -> None:
        super().__init__()
        self.inner = inner
        shape, spec = self.describe(inner)
        self._alibi: Tensor | None = None
        if slopes is not None:
            shape = KVShape(shape.num_kv_heads, shape.key_dim + ALIBI_DIMS, shape.value_dim)
            self._alibi = split_slopes(slopes / spec.scale).to(next(inner.parameters()).device)
        self.layer = PagedLayer(index, shape, spec)

    @staticmethod
    def describe(inner: Any) -> tuple[KVShape, AttentionSpec]:
        """Shapes and manner of attention of the module that is replaced, position biases left out."""
        heads, dim = inner.num_heads, inner.head_dim
        return KVShape(heads, dim, dim), AttentionSpec(scale=dim**-0.5)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[1, T, heads, dim] each; the result has its heads joined: [1, T, heads * dim]."""
        step = PagedStep.current()
        if self._alibi is not None:
            query = torch.cat((query, self._alibi.to(query).expand(*query.shape[:3], -1)), dim=-1)
            places = split_positions(step.positions).to(key)
            key = torch.cat((key, places[None, :, None].expand(*key.shape[:3], -1)), dim=-1)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return step.attend(self.layer, query, key, value).flatten(2)


class BloomModule(PagedModule):
    """Takes the place of BloomAttention, which also adds the residual."""

    def forward(self, hidden_states: Tensor, residual: Tensor, **_: Any) -> tuple[Tensor, None]:
        inner = self.inner
        fused = inner.query_key_value(hidden_states).unflatten(2, (inner.num_heads, 3, inner.head_dim))
        return residual + inner.dense(self.attend(*fused.unbind(3))), None


class FalconModule(PagedModule):
    """Takes the place of FalconAttention, whose heads always lie in groups of queries, key, value."""

    @staticmethod
    def describe(inner: Any) -> tuple[KVShape, AttentionSpec]:
        dim = inner.head_dim
        return KVShape(inner.num_kv_heads, dim, dim), AttentionSpec(scale=dim**-0.5)

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> tuple[Tensor, None]:
        inner = self.inner
        fused = inner.query_key_value(hidden_states).unflatten(2, (inner.num_kv_heads, -1, inner.head_dim))
        query, key, value = fused[..., :-2, :].flatten(2, 3), fused[..., -2, :], fused[..., -1, :]
        if self._alibi is None:
            query, key = rotate_halves(query, key, *position_embeddings, unsqueeze_dim=2)
        return inner.dense(self.attend(query, key, value)), None


class MptModule(PagedModule):
    """Takes the place of MptAttention."""

    @staticmethod
    def describe(inner: Any) -> tuple[KVShape, AttentionSpec]:
        dim = inner.head_dim
        return KVShape(inner.n_heads, dim, dim), AttentionSpec(scale=inner.softmax_scale)

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        inner = self.inner
        fused = inner.Wqkv(hidden_states)
        if inner.clip_qkv:
            fused = fused.clamp(min=-inner.clip_qkv, max=inner.clip_qkv)
        query, key, value = fused.unflatten(2, (3, inner.n_heads, inner.head_dim)).unbind(2)
        return inner.out_proj(self.attend(query, key, value)), None


class GPTNeoModule(PagedModule):
    """Takes the place of GPTNeoSelfAttention: no scale, and a window in every layer said to be local."""

    @staticmethod
    def describe(inner: Any) -> tuple[KVShape, AttentionSpec]:
        window = inner.config.window_size if inner.attention_type == "local" else None
        shape = KVShape(inner.num_heads, inner.head_dim, inner.head_dim)
        return shape, AttentionSpec(scale=1.0, window=window)

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        inner = self.inner
        projections = (inner.q_proj, inner.k_proj, inner.v_proj)
        heads = (inner.num_heads, inner.head_dim)
        output = self.attend(*(project(hidden_states).unflatten(2, heads) for project in projections))
        return inner.out_proj(output), None


class GPTJModule(PagedModule):
    """Takes the place of GPTJAttention, to which transformers hands sines and cosines down since 5.24.

    Before, each module has a table of its own.
    """

    @staticmethod
    def describe(inner: Any) -> tuple[KVShape, AttentionSpec]:
        dim = inner.head_dim
        return KVShape(inner.num_attention_heads, dim, dim), AttentionSpec(scale=dim**-0.5)

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        inner = self.inner
        query, key, value = self.project(hidden_states)
        if position_embeddings is None:
            table = inner.embed_positions.to(key.device)[position_ids]
            position_embeddings = table.to(key.dtype).chunk(2, dim=-1)
        sin, cos = position_embeddings
        output = self.attend(self._rotate(query, sin, cos), self._rotate(key, sin, cos), value)
        return inner.out_proj(output), None

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [1, T, heads, dim] each."""
        inner = self.inner
        heads = (inner.num_attention_heads, inner.head_dim)
        query = inner.q_proj(hidden_states).unflatten(2, heads)
        return (
            query,
            inner.k_proj(hidden_states).unflatten(2, heads),
            inner.v_proj(hidden_states).unflatten(2, heads),
        )

    def _rotate(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        width = self.inner.rotary_dim or x.shape[-1]
        return torch.cat((rotate_neighbours(x[..., :width], sin, cos), x[..., width:]), dim=-1)


class CodeGenModule(GPTJModule):
    """Takes the place of CodeGenAttention, whose fused projection is cut into four parts of q, v, k each."""

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [1, T, heads, dim] each."""
        inner = self.inner
        parts = inner.qkv_proj(hidden_states).unflatten(2, (4, 3, -1, inner.head_dim))
        query, value, key = (part.flatten(2, 3) for part in parts.unbind(3))
        return query, key, value


FAMILIES: dict[str, type[PagedModule]] = {
    "BloomAttention": BloomModule,
    "CodeGenAttention": CodeGenModule,
    "FalconAttention": FalconModule,
    "GPTJAttention": GPTJModule,
    "GPTNeoSelfAttention": GPTNeoModule,
    "MptAttention": MptModule,
}


def replace_attention(model: PreTrainedModel) -> dict[nn.Module, PagedLayer]:
    """Put paged modules in the places of the attention modules of `model`: each with its layer, in order."""
    if model.config.model_type != "mpt":  # MptModel cannot do without the mask that no module reads
        model.config._attn_implementation = PAGED
    slopes = _alibi_slopes(model.config)
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in FAMILIES
    ]
    layers: dict[nn.Module, PagedLayer] = {}
    for index, (parent, name, child) in enumerate(places):
        module = FAMILIES[type(child).__name__](child, index, slopes)
        setattr(parent, name, module)
        layers[module] = module.layer
    return layers


def _alibi_slopes(config: Any) -> Tensor | None:
    """[heads] float32, by how much a score grows per position; None: the family has no position biases."""
    if not has_alibi(config):
        return None
    if config.model_type == "mpt":
        alibi: Tensor = mpt_alibi(config.n_heads, 2, config.attn_config.alibi_bias_max)
        return alibi[:, 0, 1] - alibi[:, 0, 0]
    slopes = bloom_alibi(torch.ones(1, 2), config.num_attention_heads, torch.float32)[:, 0, 1]
    if config.model_type == "falcon":  # which rounds the slopes, and scales them together with the scores
        return slopes.bfloat16().float() / math.sqrt(config.hidden_size // config.num_attention_heads)
    return slopes


def split_slopes(slopes: Tensor) -> Tensor:
    """[heads] to [heads, ALIBI_DIMS]: what a query brings to the product with `split_positions`."""
    coarse = slopes.bfloat16().float()
    fine = slopes - coarse
    used = torch.stack((_POSITION_STEP * coarse, coarse, _POSITION_STEP * fine, fine), dim=1)
    return nn.functional.pad(used, (0, ALIBI_DIMS - used.shape[1]))


def split_positions(positions: Tensor) -> Tensor:
    """[T] to [T, ALIBI_DIMS]: what a key brings to the product with `split_slopes`."""
    high = positions.div(_POSITION_STEP, rounding_mode="floor")
    low = positions % _POSITION_STEP
    used = torch.stack((high, low, high, low), dim=1)
    return nn.functional.pad(used, (0, ALIBI_DIMS - used.shape[1]))
