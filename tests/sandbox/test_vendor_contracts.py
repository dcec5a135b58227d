"""The emulators' answers, and our requests, fit the vendors' own OpenAPI descriptions, where these are at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.errors import HandoffError
from agent_token_injector.sandbox.http_server import Emulator, Reply, Request
from agent_token_injector.surfaces.stripe_permissions import KNOWN
from tests.requirements import requirement
from tests.surfaces.worlds import GitHubWorld, StripeWorld

CONTRACTS = Path(__file__).resolve().parents[3] / "shared" / "contracts"

pytestmark = pytest.mark.skipif(
    not CONTRACTS.is_dir(), reason="the vendors' OpenAPI descriptions are not beside this checkout"
)


class Recorder:
    """Every exchange with an emulator, held against a contract."""

    def __init__(self, contract: str) -> None:
        from openapi_core import OpenAPI

        document = json.loads((CONTRACTS / f"{contract}.json").read_text())
        self.server = document["servers"][0]["url"]
        self._api = OpenAPI.from_dict(document)
        self._paths: dict[str, dict[str, Any]] = document["paths"]
        self.exchanges: list[tuple[Request, Reply]] = []

    @contextmanager
    def watching(self, emulator: Emulator) -> Iterator[None]:
        def after(request: Request, reply: Reply) -> None:
            self.exchanges.append((request, reply))

        hook = emulator.hook(lambda _request: True, after=after)
        yield
        hook.remove()

    def described(self, request: Request, status: int) -> bool:
        """Whether the contract knows the operation, and this status of it: GitHub's leaves many a 401 unsaid."""
        parts = request.path.split("/")
        for path, operations in self._paths.items():
            shape = path.split("/")
            fits = len(shape) == len(parts) and all(
                a.startswith("{") or a == b for a, b in zip(shape, parts, strict=True)
            )
            if fits and request.method.lower() in operations:
                return str(status) in operations[request.method.lower()]["responses"]
        return False

    def check(self, *, requests_too: bool) -> set[tuple[str, int]]:
        """Validate all, and return which (path, status) were seen."""
        from openapi_core.testing import MockRequest, MockResponse

        seen = set()
        for request, reply in self.exchanges:
            if not self.described(request, reply.status):
                continue
            mock = MockRequest(
                self.server,
                request.method.lower(),
                request.path,
                args=dict(request.query),
                headers=dict(request.headers),
                data=request.body or None,
                content_type=request.headers.get("content-type", "application/json"),
            )
            body = b"" if reply.body is None else json.dumps(reply.body).encode()
            self._api.validate_response(mock, MockResponse(body, reply.status, content_type="application/json"))
            if requests_too:
                self._api.validate_request(mock)
            seen.add((request.path, reply.status))
        return seen


@requirement("sandbox.contracts", "surface.github.contract")
def test_github_requests_and_answers_fit_githubs_description(tmp_path: Path) -> None:
    recorder = Recorder("github")
    with ExitStack() as stack:
        world = GitHubWorld(tmp_path, stack)
        stack.enter_context(recorder.watching(world.github))
        order = world.order()
        minted = world.surface.mint(order)
        world.store(minted)
        world.surface.verify(minted.lease, minted.secrets, order)
        world.surface.revoke(minted.lease, minted.secrets)
        world.surface.prove_dead(minted.lease, minted.secrets)
        _refusals(world)
    seen = recorder.check(requests_too=True)
    statuses = {status for _, status in seen}
    assert {200, 201, 204, 401, 404, 422} <= statuses
    assert len(seen) >= 8


def _refusals(world: GitHubWorld) -> None:
    for order in (world.order_for(repository="raxx/Nowhere"), world.order_for(permissions={"actions": "read"})):
        with pytest.raises(HandoffError):
            world.surface.mint(order)
    world.github.suspended = True
    for changes in ({"installation_id": 1}, {"app_client_id": "Iv1.other"}, {}):
        with pytest.raises(HandoffError):
            world.make(**changes).mint(world.order())


@requirement("sandbox.contracts", "surface.stripe.contract")
def test_stripe_answers_fit_stripes_description(tmp_path: Path) -> None:
    recorder = Recorder("stripe")
    with ExitStack() as stack:
        world = StripeWorld(tmp_path, stack)
        stack.enter_context(recorder.watching(world.stripe))
        for held in (world.held, KNOWN, ()):
            order = world.order_with(world.stripe.dashboard_create_key(held))
            minted = world.surface.mint(order)
            try:
                world.surface.verify(minted.lease, minted.secrets, order)
            except HandoffError:
                continue
        world.person_ends_it(minted)
        world.surface.prove_dead(minted.lease, minted.secrets)
    seen = recorder.check(requests_too=False)
    assert {200, 400, 401, 403} <= {status for _, status in seen}


@requirement("surface.stripe.vocabulary")
def test_the_vocabulary_is_the_recorded_one() -> None:
    recorded: dict[str, Any] = json.loads((CONTRACTS / "vocab_stripe_permissions.json").read_text())
    assert frozenset(recorded["permissions"]) == KNOWN
