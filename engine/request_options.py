"""RequestOptions: how the engine is to treat a request, apart from what it generates."""

from secrets import randbits

import msgspec

from ..errors import InvalidArgument
from ..scheduler import NamedFields, SamplingParams

_GOLDEN = 0x9E3779B97F4A7C15


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True, metaclass=NamedFields):
    """Scheduling of one request.

    Raises:
        InvalidArgument: a field does not exist, or a value has the wrong type or lies outside its range.
    """

    priority: int = 0
    """Lower numbers are served first and preempted last."""
    tenant: str = ""
    """On whose behalf: fair shares are per tenant."""
    cache_salt: str | None = None
    """Requests share cached prefixes only with those of the same salt; None means the tenant's name."""
    deadline: float | None = None
    """Seconds from now after which the request ends with TIMEOUT."""
    queue_timeout: float | None = None
    """Seconds it may wait for its first step before it ends with QUEUE_TIMEOUT."""
    adapter: str | None = None
    """Name of the loaded adapter (LoRA) that the request runs under; None for the model alone."""
    detokenize: bool = True
    """False hands over token ids without text."""

    def __post_init__(self) -> None:
        if not isinstance(self.priority, int) or isinstance(self.priority, bool):
            raise InvalidArgument("priority", self.priority, "an integer; lower is served first")
        if not isinstance(self.tenant, str):
            raise InvalidArgument("tenant", self.tenant, "a string")
        for name in ("cache_salt", "adapter"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise InvalidArgument(name, getattr(self, name), "a string, or None")
        for name in ("deadline", "queue_timeout"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and value > 0):
                raise InvalidArgument(name, value, "seconds above 0, or None")
        if not isinstance(self.detokenize, bool):
            raise InvalidArgument("detokenize", self.detokenize, "True or False")

    @staticmethod
    def seed_of_sample(params: SamplingParams, sample: int) -> int:
        """Seed of the sample's noise; the first one's is the request's own, so n does not change it."""
        if params.seed is None:
            return randbits(63)
        return (params.seed + sample * _GOLDEN) % (1 << 63)
