"""ServerMetrics: counts what happens to requests, and answers Prometheus."""

from collections.abc import Iterable
from typing import Literal

from starlette.types import Scope

from ....engine import AsyncEngine, OutputStream
from ....version import __version__
from ..config import ServerConfig
from ..keys import ADMIN_NAME
from .continuity import Continuity
from .exposition import Format, choose_format, write_metrics
from .records import Bounds, ModelRecord, ModelView, Quantity, ServerRecord
from .spec import MetricSpec
from .system import SystemMonitor
from .table import ENGINE_METRICS, HTTP_SECONDS, LLM_METRICS, SERVER_METRICS, SYSTEM_METRICS
from .vllm_table import VLLM_METRICS

Refusal = Literal[
    "draining",
    "error",
    "forbidden",
    "invalid",
    "not_found",
    "queue_full",
    "rate_limit",
    "starting",
    "timeout",
    "too_large_body",
    "unauthorised",
    "unsupported",
]
"""Why a request was not served."""

_BY_CODE: dict[str | None, Refusal] = {
    "model_stopped": "error",
    "queue_full": "queue_full",
    "starting": "starting",
}
_BY_STATUS: dict[int, Refusal] = {
    401: "unauthorised",
    403: "forbidden",
    404: "not_found",
    405: "not_found",
    413: "too_large_body",
    429: "rate_limit",
    501: "unsupported",
    503: "draining",
    504: "timeout",
}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServerMetrics:
    """Everything /metrics shows; used on the engine's event loop alone.

    Requests are booked once, when they end, from the times their queue has kept; what the engine counts is
    asked of it at a scrape. Label values are bounded: models that are or were installed, configured
    tenants, route templates, HTTP's methods and statuses, and the reasons listed here.
    """

    def __init__(
        self, engine: AsyncEngine, config: ServerConfig, *, monitor: SystemMonitor | None = None
    ) -> None:
        """`config` says which tenants there are, and whether vLLM's names are offered, too."""
        self._engine = engine
        self._monitor = monitor or SystemMonitor()
        self._tenants = frozenset({"", ADMIN_NAME, *(key.name for key in config.api_keys)})
        self._bounds = _bounds((*LLM_METRICS, *ENGINE_METRICS, *VLLM_METRICS))
        self._model_metrics = (
            *LLM_METRICS,
            *ENGINE_METRICS,
            *(VLLM_METRICS if config.vllm_metrics else ()),
        )
        self._models: dict[str, ModelRecord] = {}
        self._continuity: dict[str, Continuity] = {}
        self._server = ServerRecord(__version__, HTTP_SECONDS)

    # Booking

    def request_finished(self, model: str, tenant: str, queue: OutputStream, *, sample: int = 0) -> None:
        """Book one sample of a request, once, when it has ended.

        `sample` is its place among the samples of its prompt; the prompt is counted with the first.

        Raises:
            InvalidArgument: it has not ended.
        """
        known = tenant if tenant in self._tenants else ""
        self._record(model).add(known, queue, counts_prompt=sample == 0)

    def request_refused(self, model: str | None, reason: Refusal) -> None:
        """Book a request that was not served; `refusal_of` finds the reason of an error.

        A name that no model has or had goes without one.
        """
        known = model is not None and (model in self._models or model in self._engine.models())
        self._server.refuse(model if known and model else "", reason)

    def http_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """Book a response that has ended; `route` is a template, from `route_of`."""
        self._server.respond(method if method in _METHODS else "other", route, status, seconds)

    def remember(self, model: str) -> None:
        """Take in what a model has counted, right before it is stopped.

        Without it, what was counted since the last scrape would be missing when the model is back.

        Raises:
            ModelNotFound
        """
        self._view(model)

    # Scraping

    def render(self, accept_header: str | None) -> tuple[bytes, str]:
        """All metrics as text, in OpenMetrics where the header asks for it, and the content type."""
        chosen, content_type = choose_format(accept_header)
        views = [self._view(name) for name in self._engine.models()]
        lines = [
            *write_metrics(self._model_metrics, views, chosen),
            *write_metrics(SERVER_METRICS, (self._server,), chosen),
            *write_metrics(SYSTEM_METRICS, (self._monitor.read(),), chosen),
        ]
        lines.append("# EOF\n" if chosen is Format.OPENMETRICS else "")
        return "\n".join(lines).encode(), content_type

    def _view(self, model: str) -> ModelView:
        continuity = self._continuity.setdefault(model, Continuity())
        stats = continuity.look(self._engine.stats(model))
        return ModelView(model, stats, self._record(model))

    def _record(self, model: str) -> ModelRecord:
        record = self._models.get(model)
        if record is None:
            record = self._models[model] = ModelRecord(self._bounds)
        return record


def refusal_of(status: int, code: str | None = None) -> Refusal:
    """Why a request was refused, by the status and the code of the error it was refused with."""
    reason = _BY_CODE.get(code) or _BY_STATUS.get(status)
    return reason or ("invalid" if 400 <= status < 500 else "error")


def route_of(scope: Scope) -> str:
    """Template of the route that has answered, such as /v1/models/{name}; "" where none did."""
    return str(getattr(scope.get("route"), "path_format", ""))


def _bounds(specs: Iterable[MetricSpec[ModelView]]) -> dict[Quantity, Bounds]:
    """Buckets of all histograms of each quantity, so that every one of them can be read from one count."""
    buckets: dict[Quantity, set[float]] = {quantity: set() for quantity in Quantity}
    for spec in specs:
        if spec.quantity is not None:
            buckets[spec.quantity].update(spec.buckets)
    return {quantity: tuple(sorted(bounds)) for quantity, bounds in buckets.items()}
