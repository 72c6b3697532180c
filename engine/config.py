"""ModelConfig: what a user says about a model to install; the rest is found out, once."""

import msgspec

from ..backends.worker import KV_CACHE_DTYPES, QUANTIZATIONS, Backend
from ..errors import InvalidArgument
from ..scheduler import Eviction, NamedFields, Policy, SchedulerConfig

BLOCK_SIZES = (16, 32, 64, 128)


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, metaclass=NamedFields):
    """One model in an engine. None, 0 and "auto" mean: find out from the files and the machine.

    Raises:
        InvalidArgument: a field does not exist, or a value has the wrong type or lies outside its range.
    """

    model: str
    """A folder, a hub id or a bundled name."""
    name: str = ""
    """What the engine calls it; `model` itself when empty."""
    backend: str | Backend = "auto"
    revision: str | None = None
    token: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    """Of the weights, while they are loaded: "none", "int8" or "int4". Files that hold quantised weights are
    read as they are."""
    kv_cache_dtype: str = "auto"
    """Of keys and values in the cache: "auto" (the type that is computed in), "int8" or "uint4"."""
    batch_invariant: bool = False
    """A request gives the same bits whatever runs beside it, however its prompt is cut into steps, after a
    preemption and after a prefix hit.

    torch holds that without being asked wherever its own kernels compute the products: with quantised
    weights, and in bfloat16 on CPUs with AVX-512 and without AMX. There the switch changes nothing; elsewhere
    (float32, float16, transformers' modules, a GPU) it is refused. A GGUF file holds it on a CPU at a price:
    llama.cpp computes one sequence after the other, prompts 64 tokens at a time, and prefixes of other
    prompts are found at multiples of 64. Refused for encoders and for models with recurrent layers.
    """
    threads: int = 0
    """0: as many, up to the physical cores, as are fastest for a step of its size, by measurement; where
    results depend on it, all physical cores. Else exactly so many."""
    max_length: int | None = None
    """Longest request in tokens, prompt and output together."""
    default_max_new_tokens: int | None = 2048
    """Longest output, in tokens, of a request that sets no bound itself; None: what is left of max_length."""
    block_size: int = 16
    num_blocks: int | None = None
    """Blocks of the cache. By default what requests can use, on a CPU at most half of the memory that is
    left, and resident only as it is used; a number is taken as it is, and llama.cpp touches all at once."""
    memory_fraction: float = 0.9
    """Share of the process's (or the device's) memory limit that all models together may take."""
    enable_prefix_cache: bool = True
    prefix_cache_ttl: float | None = None
    """Seconds for which an unused prefix is kept; None keeps it until its blocks are needed."""
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    policy: Policy = Policy.FCFS
    eviction: Eviction = Eviction.LATEST
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    queue_timeout: float | None = None
    """Seconds a request may wait for its first step, where the request itself says nothing."""
    tenant_weights: dict[str, float] = {}
    """Shares of tenants under the fair policy; 1.0 where a tenant is not named."""
    adapters: dict[str, str] = {}
    """Adapters (LoRA) to load with the model: name -> file or folder."""
    max_adapters: int | None = None
    """Most adapters that may be loaded at once; None sets no bound."""
    max_adapter_rank: int | None = None
    """Largest rank that an adapter may have; None sets no bound."""
    warmup: bool = True

    def __post_init__(self) -> None:
        _require(isinstance(self.model, str) and self.model != "", self, "model", "a folder, hub id or name")
        _require(isinstance(self.name, str), self, "name", "a string")
        for field in ("device", "dtype"):
            _require(isinstance(getattr(self, field), str), self, field, 'a string, or "auto"')
        _require(
            _is_int(self.threads) and self.threads >= 0, self, "threads", "0 (as many as are fastest) or more"
        )
        bounds = (
            ("max_length", 2),
            ("default_max_new_tokens", 1),
            ("num_blocks", 2),
            ("max_adapters", 0),
            ("max_adapter_rank", 1),
        )
        for field, least in bounds:
            value = getattr(self, field)
            allowed = f"{least} or more, or None"
            _require(value is None or (_is_int(value) and value >= least), self, field, allowed)
        _require(self.quantization in QUANTIZATIONS, self, "quantization", f"one of {QUANTIZATIONS}")
        _require(self.kv_cache_dtype in KV_CACHE_DTYPES, self, "kv_cache_dtype", f"one of {KV_CACHE_DTYPES}")
        _require(self.block_size in BLOCK_SIZES, self, "block_size", f"one of {BLOCK_SIZES}")
        _require(_is_number(self.memory_fraction), self, "memory_fraction", "a number above 0, at most 1")
        _require(0 < self.memory_fraction <= 1, self, "memory_fraction", "a number above 0, at most 1")
        for field in ("prefix_cache_ttl", "queue_timeout"):
            value = getattr(self, field)
            _require(
                value is None or (_is_number(value) and value > 0), self, field, "seconds above 0, or None"
            )
        for field in ("batch_invariant", "enable_prefix_cache", "warmup"):
            _require(isinstance(getattr(self, field), bool), self, field, "True or False")
        weights = self.tenant_weights
        positive = isinstance(weights, dict) and all(_is_number(w) and w > 0 for w in weights.values())
        _require(positive, self, "tenant_weights", "a dict from tenant to a weight above 0")
        adapters = self.adapters
        named = isinstance(adapters, dict) and all(
            isinstance(part, str) and part for item in adapters.items() for part in item
        )
        _require(named, self, "adapters", "a dict from an adapter's name to its file or folder")
        self.scheduler_config()

    @property
    def installed_name(self) -> str:
        """The name requests use."""
        return self.name or self.model

    def scheduler_config(self) -> SchedulerConfig:
        """The scheduler's share of this configuration."""
        return SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            policy=self.policy,
            eviction=self.eviction,
            max_queued_requests=self.max_queued_requests,
            max_queued_tokens=self.max_queued_tokens,
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or isinstance(value, float)


def _require(holds: bool, config: ModelConfig, field: str, allowed: str) -> None:
    if not holds:
        raise InvalidArgument(field, getattr(config, field), allowed)
