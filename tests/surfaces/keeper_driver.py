"""A provisioner to be killed: mints one GitHub token, says so, and waits. The App's key comes on its standard input.

    python -m tests.surfaces.keeper_driver API_URL CLIENT_ID INSTALLATION KEEPER_DIR STOP

STOP is `minted` (wait before telling the keeper that the token is recorded) or `recorded` (wait after).
"""

from __future__ import annotations

import signal
import sys
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from agent_token_injector.clock import SystemClock
from agent_token_injector.names import HandoffId, IdentityName, TaskSlug
from agent_token_injector.spec import GitHubRequest
from agent_token_injector.surfaces.base import MintRequest
from agent_token_injector.surfaces.github import GitHubSurface


def main() -> None:
    api_url, client_id, installation, keeper_dir, stop = sys.argv[1:]
    clock = SystemClock()
    surface = GitHubSurface(
        api_url=api_url,
        app_client_id=client_id,
        installation_id=installation,
        private_key=SecretStr(sys.stdin.read()),
        clock=clock,
        keeper_dir=Path(keeper_dir),
    )
    handoff = HandoffId(TaskSlug("killed"), clock.now().date())
    request = GitHubRequest(repository="raxx/TradeMasterAPI", permissions={"contents": "write"})
    order = MintRequest(handoff, IdentityName("gh-token", handoff), request, clock.now() + timedelta(hours=1))
    minted = surface.mint(order)
    if stop == "recorded":
        minted.recorded()
    print(stop, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
