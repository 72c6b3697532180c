"""HostGuard: a server without keys answers under its own names alone, and works for its own pages alone."""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ApiError
from .scope import PROBES, refuse

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that compute and change nothing; other sites' pages cannot read the answers."""


class HostGuard:
    """Answers 421 under a foreign name, and 403 to what another site's page wants done.

    A page whose own name is made to point at this machine's address (DNS rebinding) could otherwise use the
    server as if it were its own. Its requests bear its name, though; addresses cannot be made to point
    anywhere. Probes are answered under any name. Without a Host header there is no browser.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        allowed_hosts: Sequence[str],
        origins: Sequence[str],
        open_to_all: bool,
    ) -> None:
        """Let requests in by their headers.

        Args:
            host: what the server listens on; unless that is loopback, it is answered under any address.
            allowed_hosts: further names, without ports; "*" allows all.
            origins: of other sites' pages that may have things done; "*" allows all.
            open_to_all: whether no key is asked for; if one is, pages of other sites cannot know it, and
                their origins are no matter.
        """
        self._app = app
        self._names = {name.lower() for name in allowed_hosts}
        if not _is_loopback(host) and not _is_address(host):
            self._names.add(host.lower())
        self._takes_addresses = not _is_loopback(host)
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._open_to_all = open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            error = self._refusal(scope)
            if error is not None:
                await refuse(scope, send, error)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        hosts = _values(scope, b"host")
        for host in hosts:
            if not self._answers_to(host):
                message = (
                    f"this server does not answer to the name {_name(host)!r}; start it with --allowed-host "
                    f"{_name(host)}, or with API keys"
                )
                return ApiError(421, message, kind="permission_error", code="host_not_allowed")
        if not self._open_to_all or scope["method"] in _READS:
            return None
        for origin in _values(scope, b"origin"):
            if not self._works_for(origin, hosts):
                message = (
                    f"pages of {origin!r} may not use this server; start it with --cors-origin and their "
                    "origin, or with API keys"
                )
                return ApiError(403, message, kind="permission_error", code="origin_not_allowed")
        return None

    def _answers_to(self, host: str) -> bool:
        name = _name(host)
        return (
            "*" in self._names
            or name in self._names
            or _is_loopback(name)
            or (self._takes_addresses and _is_address(name))
        )

    def _works_for(self, origin: str, hosts: Sequence[str]) -> bool:
        origin = origin.lower()
        if "*" in self._origins or origin in self._origins:
            return True
        # A proxy may speak TLS with the page, so the scheme may be either.
        scheme, _, authority = origin.partition("://")
        return scheme in ("http", "https") and authority in [host.lower() for host in hosts]


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for known, value in scope["headers"] if known == name]


def _name(host: str) -> str:
    """The name or address in a Host header, without its port; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    if _is_address(name):
        return ip_address(name).is_loopback
    return name.lower() == "localhost" or name.lower().endswith(".localhost")
