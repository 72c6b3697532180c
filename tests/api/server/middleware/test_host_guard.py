"""HostGuard: the names a server answers to, and the pages it works for."""

import httpx
import pytest
from fastapi import FastAPI

from millstream.api.server.app import create_app
from millstream.api.server.config import ServerConfig
from millstream.api.server.keys import ApiKey
from millstream.api.server.metrics import ServerMetrics
from millstream.api.server.middleware.host_guard import HostGuard
from millstream.api.server.service import ModelService
from millstream.engine import AsyncEngine

LOOPBACK = (
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.8.8.8",
    "[::1]",
    "[::1]:8000",
    "localhost:8000",
    "LocalHost",
    "a.localhost",
)
FOREIGN = (
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "",
    "[",
    "x@127.0.0.1.evil",
)


def client(host="127.0.0.1", allowed_hosts=(), origins=(), open_to_all=True):
    app = FastAPI()

    @app.api_route("/anything", methods=["GET", "POST", "DELETE"])
    async def anything():
        return "done"

    @app.get("/health")
    async def health():
        return "well"

    app.add_middleware(
        HostGuard, host=host, allowed_hosts=allowed_hosts, origins=origins, open_to_all=open_to_all
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def status(http, method="GET", **headers):
    return (await http.request(method, "/anything", headers=headers)).status_code


@pytest.mark.parametrize("host", LOOPBACK)
async def test_it_answers_to_names_of_loopback(host):
    assert await status(client(), Host=host) == 200


@pytest.mark.parametrize("host", [*FOREIGN, "192.168.0.7:8000"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_it_answers_to_no_other_name(host, method):
    response = await client().request(method, "/anything", headers={"Host": host})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (421, "host_not_allowed")
    assert "--allowed-host" in error["message"]


async def test_every_host_header_counts():
    response = await client().get("/anything", headers=[("Host", "localhost"), ("Host", "evil.example")])
    assert response.status_code == 421


async def test_probes_are_answered_under_any_name():
    assert (await client().get("/health", headers={"Host": "evil.example"})).status_code == 200


async def test_names_can_be_allowed():
    http = client(allowed_hosts=("Box.Example",))
    assert await status(http, Host="box.example:9000") == 200
    assert await status(http, Host="localhost") == 200
    assert await status(http, Host="evil.example") == 421
    assert await status(client(allowed_hosts=("*",)), Host="evil.example") == 200


async def test_a_server_for_others_answers_to_addresses_and_to_its_own_name():
    assert await status(client(host="0.0.0.0"), Host="192.168.0.7:8000") == 200
    assert await status(client(host="0.0.0.0"), Host="evil.example") == 421
    assert await status(client(host="box.example"), Host="box.example:8000") == 200


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:9999", "chrome-extension://x"]
)
async def test_pages_of_other_sites_have_nothing_done(method, origin):
    response = await client().request(
        method, "/anything", headers={"Host": "localhost:8000", "Origin": origin}
    )
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (403, "origin_not_allowed")
    assert "--cors-origin" in error["message"]
    assert await status(client(), Host="localhost:8000", Origin=origin) == 200


async def test_its_own_pages_and_allowed_ones_have_things_done():
    http = client(origins=("https://app.example/",), allowed_hosts=("box.example",))
    for host, origin in (
        ("localhost:8000", "http://localhost:8000"),
        ("box.example", "https://box.example"),
        ("localhost", "https://app.example"),
    ):
        assert await status(http, "POST", Host=host, Origin=origin) == 200
    assert await status(client(origins=("*",)), "POST", Host="localhost", Origin="null") == 200


async def test_origins_are_no_matter_where_keys_are_asked_for():
    http = client(open_to_all=False, allowed_hosts=("box.example",))
    assert await status(http, "POST", Host="box.example", Origin="http://evil.example") == 200
    assert await status(http, "POST", Host="evil.example") == 421


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 421),
        ({"admin_key": "a" * 20}, 421),
        ({"api_keys": (ApiKey(name="a", key="k" * 20),)}, 401),
        ({"api_keys": (ApiKey(name="a", key="k" * 20),), "allowed_hosts": ("box.example",)}, 421),
        ({"allowed_hosts": ("evil.example",)}, 200),
    ],
    ids=["no keys", "an admin key", "keys", "keys and names", "the name"],
)
async def test_the_application_has_it_where_it_is_open(config, expected):
    config = ServerConfig(**config)
    async with AsyncEngine() as engine:
        metrics = ServerMetrics(engine, config)
        app = create_app(ModelService(engine, metrics), config, metrics)
        app.state.drain.phase = type(app.state.drain.phase).SERVING
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://evil.example"
        ) as http:
            assert (await http.get("/v1/models")).status_code == expected
