"""DashInfer's statistics: of a model, and of a request."""

from collections.abc import Mapping
from enum import Enum

import msgspec

from ..engine import EngineStats


class AsEngineStat(msgspec.Struct):
    """State and counters of one model. A span is a KV block; one that holds only a cached prefix is free."""

    model_name: str = ""
    total_span: int = 0
    used_span: int = 0
    free_span: int = 0
    span_size: int = 0
    """Tokens."""
    total_token: int = 0
    """Tokens that the cache holds when it is full."""
    free_token: int = 0
    token_usage_percentage: float = 0.0
    pendding_request: int = 0
    running_request: int = 0
    total_generated_token: int = 0
    total_prefill_token: int = 0
    generate_token_persec: float = 0.0
    process_token_persec: float = 0.0
    """Prompt tokens."""
    total_device_memory_pool_size: int = 0
    """Bytes of the KV cache."""
    used_device_memory_pool_size: int = 0
    prefix_cache_hit_token: int = 0
    prefix_cache_miss_token: int = 0
    prefix_cache_hit_rate: float = 0.0
    """0 to 1, of the prompt tokens looked up."""
    prefix_cache_miss_rate: float = 0.0

    @classmethod
    def of(cls, stats: EngineStats) -> "AsEngineStat":
        """The engine's statistics under DashInfer's names."""
        free = stats.total_blocks - stats.held_blocks
        queried = stats.prefix_queried_tokens
        missed = queried - stats.prefix_hit_tokens
        return cls(
            model_name=stats.model,
            total_span=stats.total_blocks,
            used_span=stats.held_blocks,
            free_span=free,
            span_size=stats.block_size,
            total_token=stats.total_blocks * stats.block_size,
            free_token=free * stats.block_size,
            token_usage_percentage=100 * stats.held_blocks / stats.total_blocks,
            pendding_request=stats.waiting,
            running_request=stats.running,
            total_generated_token=stats.generated_tokens,
            total_prefill_token=stats.prompt_tokens,
            generate_token_persec=stats.generated_tokens_per_second,
            process_token_persec=stats.prompt_tokens_per_second,
            total_device_memory_pool_size=stats.total_blocks * stats.kv_bytes_per_block,
            used_device_memory_pool_size=stats.held_blocks * stats.kv_bytes_per_block,
            prefix_cache_hit_token=stats.prefix_hit_tokens,
            prefix_cache_miss_token=missed,
            prefix_cache_hit_rate=stats.prefix_hit_tokens / queried if queried else 0.0,
            prefix_cache_miss_rate=missed / queried if queried else 0.0,
        )

    def dict(self) -> dict[str, str]:
        """All fields as strings."""
        return {name: str(value) for name, value in msgspec.structs.asdict(self).items()}

    def ToString(self) -> str:
        """All fields, a line each."""
        lines = [f"{name} = {value}" for name, value in self.dict().items()]
        return "\n".join(["Members of AsEngineStat", *lines, ""])


class AsFileInfo(msgspec.Struct, frozen=True):
    """Versions of Millstream that wrote a serialised model, and the present one."""

    create_version_graph: str
    create_version_param: str
    current_version_engine: str


class RequestStatInfo:
    """`ResultQueue.RequestStatInfo()` as attributes; `finished_time` is called `finish_time` here.

    Moments and spans are in milliseconds, lengths in tokens, rates in tokens per second.
    """

    class Key(Enum):
        """Keys of the dict."""

        KEY_REQUEST_TIME_TS = "arrival_time"
        KEY_FIRST_TOKEN_TIME_TS = "first_token_time"
        KEY_LAST_TOKEN_TIME_TS = "last_token_time"
        KEY_TTFT_MS = "time_to_first_token"
        KEY_SCHEDULE_TIME_MS = "time_in_queue"
        KEY_TOTAL_TIME_MS = "finished_time"
        KEY_INPUT_LEN = "context_token_length"
        KEY_OUTPUT_LEN = "generated_token_length"
        KEY_INPUT_CACHE_LEN = "context_cached_length"
        KEY_CONTEXT_TPS = "context_tps"
        KEY_GENERATE_TPS = "generate_tps"

    def __init__(self, info_dict: Mapping[str, int]) -> None:
        """Raises KeyError when a key is missing."""
        key = RequestStatInfo.Key
        self.arrival_time = info_dict[key.KEY_REQUEST_TIME_TS.value]
        self.first_token_time = info_dict[key.KEY_FIRST_TOKEN_TIME_TS.value]
        self.last_token_time = info_dict[key.KEY_LAST_TOKEN_TIME_TS.value]
        self.time_to_first_token = info_dict[key.KEY_TTFT_MS.value]
        self.time_in_queue = info_dict[key.KEY_SCHEDULE_TIME_MS.value]
        self.finish_time = info_dict[key.KEY_TOTAL_TIME_MS.value]
        self.context_token_length = info_dict[key.KEY_INPUT_LEN.value]
        self.generated_token_length = info_dict[key.KEY_OUTPUT_LEN.value]
        self.context_cached_length = info_dict[key.KEY_INPUT_CACHE_LEN.value]
        self.context_tps = info_dict[key.KEY_CONTEXT_TPS.value]
        self.generate_tps = info_dict[key.KEY_GENERATE_TPS.value]

    def __str__(self) -> str:
        return f"RequestStatInfo({', '.join(f'{name}={value}' for name, value in vars(self).items())})"
