"""The engine: models and their life cycle, the step loop, output streams and text output."""

from ..scheduler import Eviction, FinishReason, Policy, Pooling, SamplingParams
from .async_engine import AsyncEngine
from .config import ModelConfig
from .embeddings import Embedding, PoolingParams
from .engine import Engine, new_event_loop
from .intake import RequestHandle
from .memory_plan import MemoryPlan
from .model import ModelState
from .output_stream import Output, OutputStream
from .request_options import RequestOptions
from .request_times import RequestTimes
from .snapshot import BlockMap, EngineSnapshot, RequestRow, RequestState
from .stats import EngineStats

__all__ = [
    "AsyncEngine",
    "BlockMap",
    "Embedding",
    "Engine",
    "EngineSnapshot",
    "EngineStats",
    "Eviction",
    "FinishReason",
    "MemoryPlan",
    "ModelConfig",
    "ModelState",
    "Output",
    "OutputStream",
    "Policy",
    "Pooling",
    "PoolingParams",
    "RequestHandle",
    "RequestOptions",
    "RequestRow",
    "RequestState",
    "RequestTimes",
    "SamplingParams",
    "new_event_loop",
]
