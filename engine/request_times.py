"""RequestTimes: when things happened to a request."""

import msgspec


class RequestTimes(msgspec.Struct):
    """Moments of one request, in seconds on the monotonic clock; None until they happen.

    Written by the engine.
    """

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None
