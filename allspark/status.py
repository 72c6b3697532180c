"""From Millstream's errors to DashInfer's status codes."""

from ..errors import (
    AdapterInUse,
    AdapterLoaded,
    AdapterNotFound,
    InsufficientMemory,
    InvalidArgument,
    LimitExceeded,
    MillstreamError,
    ModelFormatError,
    ModelNotFound,
    ModelStateError,
    NotSupported,
    QueueFull,
    UnknownRequest,
    WorkerError,
)
from .enums import AsStatus

_STATUS_OF: dict[type[MillstreamError], AsStatus] = {
    InvalidArgument: AsStatus.ALLSPARK_PARAM_ERROR,
    NotSupported: AsStatus.ALLSPARK_PARAM_ERROR,
    ModelNotFound: AsStatus.ALLSPARK_PARAM_ERROR,
    LimitExceeded: AsStatus.ALLSPARK_EXCEED_LIMIT_ERROR,
    QueueFull: AsStatus.ALLSPARK_REQUEST_DENIED,
    ModelStateError: AsStatus.ALLSPARK_INVALID_CALL_ERROR,
    UnknownRequest: AsStatus.ALLSPARK_ILLEGAL_REQUEST_ID,
    InsufficientMemory: AsStatus.ALLSPARK_MEMORY_ERROR,
    ModelFormatError: AsStatus.ALLSPARK_IO_ERROR,
    AdapterNotFound: AsStatus.ALLSPARK_LORA_NOT_FOUND,
    AdapterLoaded: AsStatus.ALLSPARK_LORA_ALREADY_LOADED,
    AdapterInUse: AsStatus.ALLSPARK_LORA_IN_USE,
    WorkerError: AsStatus.ALLSPARK_RUNTIME_ERROR,
}


def status_of(error: MillstreamError) -> AsStatus:
    """The code DashInfer would answer where Millstream raises `error`."""
    for kind, status in _STATUS_OF.items():
        if isinstance(error, kind):
            return status
    return AsStatus.ALLSPARK_UNKNOWN_ERROR
