"""DecoderLayer: the weights of one layer of a NativeDecoder, in the layouts that its kernels take."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from ..kernels.interface import Activation
from .config import LayerConfig
from .linear import Linear, LinearMaker
from .weights import LayerWeights

Product = TypeVar("Product", bound=Linear, covariant=True)


@dataclass(frozen=True, slots=True)
class DecoderLayer(Generic[Product]):
    """One layer, whose products are all of one type; a norm that the family lacks is None."""

    config: LayerConfig
    qkv: Product
    output: Product
    gated: Product
    down: Product
    before_attention: Tensor | None
    after_attention: Tensor | None
    before_mlp: Tensor | None
    after_mlp: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None


def make_layer(
    config: LayerConfig, weights: LayerWeights, maker: LinearMaker, kind: Activation
) -> DecoderLayer[Linear]:
    """Bring a layer's weights into their layouts."""
    return DecoderLayer(
        config,
        qkv=maker.linear(weights.qkv),
        output=maker.linear(weights.output),
        gated=maker.gated(weights.gate_up, kind),
        down=maker.linear(weights.down),
        before_attention=weights.before_attention,
        after_attention=weights.after_attention,
        before_mlp=weights.before_mlp,
        after_mlp=weights.after_mlp,
        query_norm=weights.query_norm,
        key_norm=weights.key_norm,
    )
