"""ServerConfig: how the server behaves; models have configurations of their own."""

from pathlib import Path

import msgspec

from ...errors import InvalidArgument
from .keys import ApiKey

_LEAST = {
    "max_body_bytes": 1,
    "max_stored_responses": 0,
    "max_connections": 1,
    "max_connections_per_address": 1,
}
_SECONDS = ("keep_alive_seconds", "drain_seconds", "stall_seconds", "head_seconds", "body_seconds")


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about the server that is not about a model.

    Raises:
        InvalidArgument: a value has the wrong type or lies outside its range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """0 lets the operating system choose one."""
    api_keys: tuple[ApiKey, ...] = ()
    """Empty: no key is asked for."""
    admin_key: str | None = None
    """For loading and unloading models; None refuses that to everybody."""
    protect_metrics: bool = False
    """Ask for a key at /metrics, too."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the server; "*" allows all, none is allowed by default."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the server answers to, beside those of loopback; "*" allows all.

    Without API keys, or where names are given here, it answers to no others."""
    head_seconds: float = 10.0
    """In which a request's head must be there."""
    body_seconds: float = 30.0
    """That may pass without any of a request's body, while it is read."""
    max_connections: int = 4096
    max_connections_per_address: int = 1024
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    max_body_bytes: int = 16 << 20
    request_timeout: float | None = None
    """Seconds after which a request that names no time-out of its own ends; None sets no bound."""
    keep_alive_seconds: float = 10.0
    """Between the comments on a stream that has nothing to say yet."""
    drain_seconds: float = 30.0
    """How long requests in flight may go on after SIGTERM."""
    stall_seconds: float = 60.0
    """/health fails when a model has had work for so long and no step has ended."""
    refuse_unknown_fields: bool = True
    """False drops fields that no route knows, with a warning in the log."""
    log_prompts: bool = False
    """Whether prompts and outputs may be written to the log."""
    vllm_metrics: bool = False
    """Offer vLLM's metric names beside the server's own."""
    max_stored_responses: int = 1000
    """Responses kept for `previous_response_id`; the oldest are forgotten first."""
    chat_template: str | None = None
    """Jinja source that replaces the models' own templates."""
    trust_request_templates: bool = False
    """Whether requests may bring Jinja source; without it they may only name one of the model's templates."""

    def __post_init__(self) -> None:
        _require(isinstance(self.host, str) and self.host != "", self, "host", "an address to listen on")
        _require(_is_int(self.port) and 0 <= self.port <= 65535, self, "port", "0 to 65535")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            _require(_is_int(value) and value >= least, self, name, f"{least} or more")
        for name in _SECONDS:
            _require(_is_seconds(getattr(self, name)), self, name, "seconds above 0")
        timeout = self.request_timeout
        _require(timeout is None or _is_seconds(timeout), self, "request_timeout", "seconds above 0, or None")
        both = (self.tls_certificate is None) == (self.tls_key is None)
        _require(both, self, "tls_key", "a file whenever tls_certificate is one, and None otherwise")

    def __repr__(self) -> str:
        """Everything but the keys."""
        hidden = {"admin_key": None if self.admin_key is None else "<not shown>"}
        fields = {**{name: getattr(self, name) for name in self.__struct_fields__}, **hidden}
        return f"ServerConfig({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seconds(value: object) -> bool:
    return (_is_int(value) or isinstance(value, float)) and 0 < value < float("inf")  # type: ignore[operator]


def _require(holds: bool, config: ServerConfig, field: str, allowed: str) -> None:
    if not holds:
        raise InvalidArgument(field, getattr(config, field), allowed)
