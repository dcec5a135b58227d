"""The official conformance suite: our reference server passes it directly, and the same through the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.mcp_proxy import HttpServer, StdioServer
from tests.mcp_proxy.conformance import EXPECTED, REVISIONS, Results, difference, explained, failed, passed, run_suite
from tests.mcp_proxy.conformance.forwarder import forwarder
from tests.mcp_proxy.harness import TOKEN, Rig
from tests.mcp_proxy.reference import FIXTURE, TRANSPORTS, SdkServer, Transport, reference
from tests.requirements import requirement

NAME = "reference"
GRANTS: list[str | dict[str, Any]] = [
    {"name": tool["name"], "server": NAME, "tool": tool["name"], "input_required": tool["name"] in FIXTURE["rounds"]}
    for tool in FIXTURE["tools"]
]
EVERYTHING = {
    NAME: {
        "resources": ["test://*"],
        "subscribe": True,
        "prompts": [prompt["name"] for prompt in FIXTURE["prompts"]],
        "completion": True,
        "logging": True,
        "sampling": True,
        "elicitation": True,
        "roots": True,
    }
}
OWN_QUESTIONS = {"initialize", "notifications/initialized", "server/discover", "tools/list", "ping"}
"""What the proxy itself asks a server of which nothing is granted."""

OTHER_ERA_MS = 5_000
"""What needs the one era and meets the other may hang in the suite's own client; nothing is expected of it."""


@pytest.fixture(scope="module", params=REVISIONS)
def direct(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Results]]:
    """A revision, and what the suite finds without a proxy."""
    revision: str = request.param
    folder = tmp_path_factory.mktemp("direct")
    with reference("http", folder / "log") as server:
        yield revision, run_suite(server.url, revision, folder / "out")


def behind(server: SdkServer, revision: str) -> HttpServer | StdioServer:
    """The reference server as the proxy knows it. Over stdio it speaks one era, that of its first message."""
    if server.transport == "http":
        return HttpServer(NAME, server.url)
    return StdioServer(NAME, server.argv, env=server.env, protocol=revision)


@requirement("mcp.reference-server")
def test_the_reference_server_passes_the_official_suite(direct: tuple[str, Results]) -> None:
    revision, results = direct
    assert failed(results) == {}
    assert passed(results) == EXPECTED[revision]["direct"]
    assert sum(passed(results).values()) == EXPECTED[revision]["checks"]


@requirement("mcp.reference-server")
def test_what_carries_the_token_for_the_suite_changes_nothing_else(direct: tuple[str, Results], tmp_path: Path) -> None:
    revision, results = direct
    with reference("http", tmp_path / "log") as server, forwarder(server.url, TOKEN) as url:
        assert difference(results, run_suite(url, revision, tmp_path / "out")) == {}


@requirement("mcp.conformance")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_same_scenarios_pass_through_the_proxy_but_for_what_is_listed(
    rig: Rig, tmp_path: Path, direct: tuple[str, Results], transport: Transport
) -> None:
    revision, results = direct
    with reference(transport, tmp_path / "log") as server:
        proxy = rig.start(GRANTS, servers=[behind(server, revision)], allow=EVERYTHING)
        with forwarder(proxy.url, TOKEN) as url:
            differs = difference(results, run_suite(url, revision, tmp_path / "out"))
    expected = EXPECTED[revision]["differs"][transport]
    assert all(one["reason"] for one in expected.values())
    assert differs == {
        scenario: {kind: [tuple(check) for check in one[kind]] for kind in ("lost", "found")}
        for scenario, one in expected.items()
    }, explained(tmp_path / "out")


@requirement("mcp.conformance-other-era")
def test_a_server_of_the_other_era_serves_what_both_eras_have(
    rig: Rig, tmp_path: Path, direct: tuple[str, Results]
) -> None:
    revision, results = direct
    (other,) = set(REVISIONS) - {revision}
    with reference("http", tmp_path / "log") as server:
        proxy = rig.start(GRANTS, servers=[HttpServer(NAME, server.url, protocol=other)], allow=EVERYTHING)
        with forwarder(proxy.url, TOKEN) as url:
            found = run_suite(url, revision, tmp_path / "out", scenario_ms=OTHER_ERA_MS)
    differs = difference(results, found)
    assert {name: one for name, one in differs.items() if name in EXPECTED[revision]["other_era"]} == {}, explained(
        tmp_path / "out"
    )


@requirement("mcp.conformance-nothing-granted")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("revision", REVISIONS)
def test_where_nothing_is_granted_nothing_of_the_suite_reaches_the_server(
    rig: Rig, tmp_path: Path, revision: str, transport: Transport
) -> None:
    with reference(transport, tmp_path / "log") as server:
        proxy = rig.start([], servers=[behind(server, revision)])
        with forwarder(proxy.url, TOKEN) as url:
            run_suite(url, revision, tmp_path / "out")
        assert {one["method"] for one in server.received()} <= OWN_QUESTIONS
    assert proxy.tools == ()
    assert not rig.events("tool.call")
