"""The numbers of well-known models: their config.json and the name and shape of every tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

PLAIN_NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA_NORMS = (*PLAIN_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a checkpoint. A norm holds one value throughout, everything else is random."""

    name: str
    shape: tuple[int, ...]
    constant: float | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A dense decoder in the Hugging Face layout; lengths are in tokens."""

    model_type: str
    class_name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    tied_head: bool
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    activation: str = "silu"
    qkv_bias: bool = False
    qk_norm: bool = False
    fused_projections: bool = False
    """One matrix for q, k and v, and one for gate and up."""
    norms: tuple[str, ...] = PLAIN_NORMS
    norm_weight: float = 1.0
    """What a norm's weight is when it changes nothing; Gemma stores the weight minus one."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Further keys of config.json."""

    def config(self, dtype: str) -> dict[str, Json]:
        """The content of config.json for weights of this dtype."""
        return {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_length,
            "tie_word_embeddings": self.tied_head,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": self.activation,
            "attention_bias": self.qkv_bias,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "torch_dtype": dtype,
            **self.extra,
        }

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, in the order of the checkpoint."""
        yield Tensor(name="model.embed_tokens.weight", shape=(self.vocab_size, self.hidden_size))
        for layer in range(self.num_layers):
            yield from self._layer(f"model.layers.{layer}")
        yield self._norm("model.norm", self.hidden_size)
        if not self.tied_head:
            yield Tensor(name="lm_head.weight", shape=(self.vocab_size, self.hidden_size))

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.size for tensor in self.tensors())

    def _layer(self, prefix: str) -> Iterator[Tensor]:
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        inputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        wide = {"gate_proj": inner, "up_proj": inner}
        if self.fused_projections:
            inputs = {"qkv_proj": sum(inputs.values())}
            wide = {"gate_up_proj": 2 * inner}
        for name, rows in inputs.items():
            yield Tensor(name=f"{attention}.{name}.weight", shape=(rows, hidden))
            if self.qkv_bias:
                yield Tensor(name=f"{attention}.{name}.bias", shape=(rows,))
        if self.qk_norm:
            yield self._norm(f"{attention}.q_norm", self.head_dim)
            yield self._norm(f"{attention}.k_norm", self.head_dim)
        yield Tensor(name=f"{attention}.o_proj.weight", shape=(hidden, queries))
        for name, rows in wide.items():
            yield Tensor(name=f"{mlp}.{name}.weight", shape=(rows, hidden))
        yield Tensor(name=f"{mlp}.down_proj.weight", shape=(hidden, inner))
        for name in self.norms:
            yield self._norm(f"{prefix}.{name}", hidden)

    def _norm(self, name: str, size: int) -> Tensor:
        return Tensor(name=f"{name}.weight", shape=(size,), constant=self.norm_weight)
