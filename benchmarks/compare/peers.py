"""Who is compared: Millstream's own rows and the peers, with the settings that serve them best."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .runners.protocol import Setting

BF16, INT8, INT4 = "bf16", "int8", "int4"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One row of the table."""

    name: str
    title: str
    precision: str
    """Of the weights."""
    runner: str
    """Module in `runners`."""
    environment: str | None
    """Virtual environment it runs in; None: Millstream's own."""
    model: str
    """Converted model it reads; see `environments.MODELS`."""
    prefix_cache: bool = False
    """Whether it can keep what prompts begin with."""
    prefix_cache_by_default: bool = False
    """Whether it does where nobody says anything."""
    settings: dict[str, Setting] = field(default_factory=dict)
    alternatives: tuple[dict[str, Setting], ...] = ()
    """Other settings, one of which may serve a workload better; it is measured with the best of all."""

    @property
    def is_ours(self) -> bool:
        """Whether this is Millstream."""
        return self.runner == "millstream_engine"


_OURS = Peer(
    name="millstream-bf16",
    title="Millstream",
    precision=BF16,
    runner="millstream_engine",
    environment=None,
    model="checkpoint",
    prefix_cache=True,
    prefix_cache_by_default=True,
    settings={"dtype": "bfloat16"},
)
_OURS_ON_LLAMACPP = replace(
    _OURS,
    name="millstream-gguf-bf16",
    title="Millstream on llama.cpp",
    model="gguf-bf16",
    settings={"backend": "llamacpp"},
)
_LLAMACPP = Peer(
    name="llamacpp-bf16",
    title="llama.cpp BF16, bare loop",
    precision=BF16,
    runner="llamacpp",
    environment=None,
    model="gguf-bf16",
    prefix_cache=True,
    settings={"tokens_per_call": 2048, "n_ubatch": 2048, "unified": False},
    alternatives=(
        {"tokens_per_call": 2048, "n_ubatch": 512, "unified": False},
        {"tokens_per_call": 512, "n_ubatch": 512, "unified": False},
    ),
)
_OPENVINO = Peer(
    name="openvino-int8",
    title="OpenVINO GenAI int8",
    precision=INT8,
    runner="openvino",
    environment="openvino",
    model="openvino-int8",
    prefix_cache=True,
    settings={"precision": "bf16", "max_num_batched_tokens": 2048},
)

PEERS = (
    _OURS,
    replace(_OURS, name="millstream-int8", precision=INT8, settings={"quantization": "int8"}),
    replace(_OURS, name="millstream-int4", precision=INT4, settings={"quantization": "int4"}),
    _OURS_ON_LLAMACPP,
    replace(_OURS_ON_LLAMACPP, name="millstream-gguf-q8_0", precision=INT8, model="gguf-q8_0"),
    replace(_OURS_ON_LLAMACPP, name="millstream-gguf-q4_0", precision=INT4, model="gguf-q4_0"),
    replace(
        _OPENVINO, name="openvino-fp16", title="OpenVINO GenAI fp16", precision=BF16, model="openvino-fp16"
    ),
    _OPENVINO,
    _LLAMACPP,
    replace(
        _LLAMACPP,
        name="llamacpp-q8_0",
        title="llama.cpp Q8_0, bare loop",
        precision=INT8,
        model="gguf-q8_0",
    ),
    replace(
        _LLAMACPP,
        name="llamacpp-q4_0",
        title="llama.cpp Q4_0, bare loop",
        precision=INT4,
        model="gguf-q4_0",
    ),
    Peer(
        name="dashinfer",
        title="DashInfer fp32, bf16 products",
        precision=BF16,
        runner="dashinfer",
        environment="dashinfer",
        model="dashinfer",
        settings={"matmul_precision": "medium"},
    ),
    Peer(
        name="transformers-continuous",
        title="transformers, continuous batching",
        precision=BF16,
        runner="transformers_continuous",
        environment=None,
        model="checkpoint",
        prefix_cache=True,
        prefix_cache_by_default=True,
        settings={"dtype": "bfloat16", "max_batch_tokens": 256, "page_size": 64},
    ),
    Peer(
        name="transformers-static",
        title="transformers, generate",
        precision=BF16,
        runner="transformers_static",
        environment=None,
        model="checkpoint",
        settings={"dtype": "bfloat16", "batch_size": 32},
    ),
    Peer(
        name="onnxruntime-int4",
        title="onnxruntime-genai int4",
        precision=INT4,
        runner="onnxruntime",
        environment="onnxruntime",
        model="onnxruntime-int4",
        settings={"batch_size": 32},
    ),
    Peer(
        name="ctranslate2-int8",
        title="CTranslate2 int8",
        precision=INT8,
        runner="ctranslate2",
        environment="ctranslate2",
        model="ctranslate2-int8",
        settings={"compute_type": "int8", "batch_size": 32},
    ),
)


def counterparts(peers: Sequence[Peer]) -> dict[str, str]:
    """Name of a peer -> Millstream's row that it is compared with, among `peers`.

    That is the row on the same file, or else the first one whose weights have the same precision.
    Millstream's own rows are compared with none.
    """
    ours = [peer for peer in peers if peer.is_ours]
    found = {}
    for peer in peers:
        same_file = [one.name for one in ours if one.model == peer.model and one.precision == peer.precision]
        alike = same_file or [one.name for one in ours if one.precision == peer.precision]
        if alike and not peer.is_ours:
            found[peer.name] = alike[0]
    return found
