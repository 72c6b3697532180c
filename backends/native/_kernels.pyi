"""The extension module: addresses are those of tensors' first elements, sizes and strides count elements.

`kind` is the type of the activations: 0 float32, 1 bfloat16. `mode` is how the cache holds keys and values:
0 like the activations, 1 in 8 bits, 2 in 4 bits.
"""

from typing import Protocol

class Functions(Protocol):
    """The kernels of one level."""

    def rms_norm(
        self,
        kind: int,
        x: int,
        outer_stride: int,
        inner_stride: int,
        weight: int,
        eps: float,
        out: int,
        out_outer_stride: int,
        out_inner_stride: int,
        outer: int,
        inner: int,
        n: int,
        /,
    ) -> None:
        """RMS norm over the last dimension of `x` [outer, inner, n]; `out` may be `x`."""

    def add_rms_norm(
        self, kind: int, residual: int, x: int, weight: int, eps: float, out: int, rows: int, n: int, /
    ) -> None:
        """Add `x` to `residual`, both [rows, n], and give the norm of the sum."""

    def gated_activation(
        self, kind: int, activation: int, gate_up: int, out: int, rows: int, n: int, /
    ) -> None:
        """[rows, 2 n] -> [rows, n]; `activation` is 0 SiLU, 1 GELU, 2 GELU by tanh."""

    def quantise_rows(
        self, kind: int, x: int, stride: int, out: int, scales: int, rows: int, n: int, /
    ) -> None:
        """Rows of `x` as int8 `out` [rows, n] and float32 `scales` [rows]."""

    def write(
        self,
        kind: int,
        cache: int,
        kv_heads: int,
        dim: int,
        block_size: int,
        mode: int,
        slots: int,
        clears: int,
        tokens: int,
        key: int,
        key_token_stride: int,
        key_head_stride: int,
        value: int,
        value_token_stride: int,
        value_head_stride: int,
        /,
    ) -> None:
        """Store keys and values in `slots`; `clears` is 0 or, per token, whether its block ends behind it."""

    def rotate_write(
        self,
        kind: int,
        cache: int,
        kv_heads: int,
        dim: int,
        block_size: int,
        mode: int,
        slots: int,
        clears: int,
        tokens: int,
        qkv: int,
        heads: int,
        cos: int,
        sin: int,
        width: int,
        /,
    ) -> None:
        """Turn queries and keys of `qkv` [tokens, heads + 2 kv heads, dim] in place, then store."""

    def attend(
        self,
        kind: int,
        cache: int,
        kv_heads: int,
        dim: int,
        block_size: int,
        mode: int,
        query: int,
        query_stride: int,
        out: int,
        heads: int,
        slices: int,
        order: int,
        query_starts: int,
        contexts: int,
        tables: int,
        table_stride: int,
        scale: float,
        softcap: float,
        window: int,
        /,
    ) -> None:
        """Attention of all slices; `order` lists them, long contexts first; `softcap`, `window` 0: none."""

    def sampling_best(self, logits: int, count: int, vocab: int, ids: int, peaks: int, /) -> None:
        """The first largest one of each row of `logits` [count, vocab]: `ids` int64, `peaks` float32."""

    def sampling_draw(
        self,
        logits: int,
        vocab: int,
        rows: int,
        count: int,
        peaks: int,
        temperature: int,
        top_k: int,
        top_p: int,
        min_gap: int,
        words: int,
        chosen: int,
        /,
    ) -> None:
        """Draw int64 `chosen` [count] from `rows` (int64 [count]); see backends/answers/token_sampler.py."""

    def sampling_leading(
        self, logits: int, vocab: int, rows: int, count: int, width: int, ids: int, values: int, /
    ) -> None:
        """Int64 `ids` and float32 `values` [count, width] of the leading tokens of each of `rows`."""

    def sampling_log_totals(
        self, logits: int, vocab: int, rows: int, count: int, peaks: int, totals: int, /
    ) -> None:
        """Float64 `totals` [count]: log(sum(exp(logits))) of each of `rows`."""

    def pack_bf16(self, weight: int, rows: int, inputs: int, gated: int, packed: int, /) -> None:
        """A bfloat16 weight [rows, inputs] in panels; level "avx512" only; the number of inputs is even."""

    def linear_bf16(
        self,
        out_kind: int,
        x: int,
        stride: int,
        rows: int,
        inputs: int,
        packed: int,
        bias: int,
        activation: int,
        y: int,
        y_stride: int,
        outputs: int,
        /,
    ) -> None:
        """See `linear_int8`; bfloat16 rows, sums in float32."""

    def panel_bytes_bf12(self, inputs: int, /) -> int:
        """Bytes of a panel that `pack_bf12` fills; level "avx512" only, as are its companions."""

    def pack_bf12(self, weight: int, rows: int, inputs: int, gated: int, packed: int, /) -> bool:
        """See `pack_bf16`, in 12 bits without loss; False, the content unknown, where that cannot be."""

    def linear_bf12(
        self,
        out_kind: int,
        x: int,
        stride: int,
        rows: int,
        inputs: int,
        packed: int,
        bias: int,
        activation: int,
        y: int,
        y_stride: int,
        outputs: int,
        /,
    ) -> None:
        """See `linear_bf16`, whose results it gives bit for bit."""

    def read_memory(self, address: int, size: int, /) -> int:
        """All bits of so many bytes, taken together in some way; each thread reads a part."""

    def pack_int8(
        self, kind: int, weight: int, rows: int, inputs: int, gated: int, packed: int, scales: int, /
    ) -> None:
        """A weight [rows, inputs] as 8-bit integers in panels, and a scale for each of their columns."""

    def linear_int8(
        self,
        kind: int,
        out_kind: int,
        x: int,
        stride: int,
        rows: int,
        inputs: int,
        packed: int,
        scales: int,
        bias: int,
        activation: int,
        y: int,
        y_stride: int,
        outputs: int,
        /,
    ) -> None:
        """Rows times packed weights; `activation`: 0 none, of a gated layer 1 + that of gated_activation."""

    def pack_int4(
        self, kind: int, weight: int, rows: int, inputs: int, gated: int, packed: int, scales: int, /
    ) -> None:
        """A weight [rows, inputs] as 4-bit integers in panels, with multipliers of groups of 32 inputs."""

    def linear_int4(
        self,
        kind: int,
        out_kind: int,
        x: int,
        stride: int,
        rows: int,
        inputs: int,
        packed: int,
        scales: int,
        bias: int,
        activation: int,
        y: int,
        y_stride: int,
        outputs: int,
        /,
    ) -> None:
        """See `linear_int8`."""

LEVELS: tuple[str, ...]

def functions(level: str) -> Functions: ...
def set_threads(count: int, /) -> None:
    """How many threads the kernels that this thread calls take from now on; 1 to 4096."""

def threads() -> int:
    """How many threads the kernels that this thread calls take."""
