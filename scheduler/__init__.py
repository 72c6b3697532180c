"""Continuous batching: what each step computes, for whom, and when a request ends; pure Python, no clock."""

from .admission import Admission
from .batch import Batch, Chunk, Pooling, SequenceStart, StepResult, TokenLogprobs, Wants
from .config import Eviction, Policy, SchedulerConfig
from .named_fields import NamedFields
from .request import FinishReason, Request, RequestStatus
from .sampling_params import SamplingParams
from .scheduler import Scheduler
from .statistics import SchedulerStats

__all__ = [
    "Admission",
    "Batch",
    "Chunk",
    "Eviction",
    "FinishReason",
    "NamedFields",
    "Policy",
    "Pooling",
    "Request",
    "RequestStatus",
    "SamplingParams",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "SequenceStart",
    "StepResult",
    "TokenLogprobs",
    "Wants",
]
