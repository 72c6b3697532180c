"""The engine: models and their life cycle, the step loop, result queues and text output."""

from ..scheduler import Eviction, FinishReason, Policy, SamplingParams
from .async_engine import AsyncEngine
from .config import ModelConfig
from .engine import Engine, new_event_loop
from .memory_plan import MemoryPlan
from .model import ModelState, RequestHandle
from .request_times import RequestTimes
from .result_queue import GeneratedElements, GenerateRequestStatus, ResultQueue
from .stats import EngineStats

__all__ = [
    "AsyncEngine",
    "Engine",
    "EngineStats",
    "Eviction",
    "FinishReason",
    "GenerateRequestStatus",
    "GeneratedElements",
    "MemoryPlan",
    "ModelConfig",
    "ModelState",
    "Policy",
    "RequestHandle",
    "RequestTimes",
    "ResultQueue",
    "SamplingParams",
    "new_event_loop",
]
