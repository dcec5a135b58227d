"""Bearer tokens for MCP servers that ask for them: OAuth 2.1 client credentials (RFC 6749 §4.4, RFC 8707).

The MCP SDK builds the request's authentication and reads the answer; what carries it is transport.py, which follows no
redirect, takes no proxy from the environment, and speaks TLS to all but loopback. The token's address comes from the
signed spec. Nothing is discovered: what a server says of itself cannot lead the client's secret elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from agent_token_injector import transport
from agent_token_injector.clock import LOCAL_EARLY
from agent_token_injector.errors import SettingsError

if TYPE_CHECKING:
    from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

    from agent_token_injector.clock import Clock
    from agent_token_injector.mcp_proxy.servers import OAuthClient

UNTOLD_SECONDS: Final = 60
"""How long a token is kept whose answer does not say how long it lives."""
LONGEST_SECONDS: Final = 3600
"""No token is kept longer, whatever the answer says."""
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
"""RFC 6749 §A.12, without the blank, which a header's value cannot end with."""
TIMEOUT: Final = transport.Timeout(connect=5.0, read=10.0, total=20.0)


class TokenRefused(Exception):
    """No token was given. The text names the address and the answer's status; it holds no secret of ours."""


class TokenSource:
    """Asks for one server's tokens and keeps each until 30 s before its end. For one thread at a time.

    Args:
        client: where to ask, and as whom.
        resource: the server's URL, which the token is for (RFC 8707).
        clock: tells when a token is about to end.
        redact: replaces known secrets in what the authorization server says.
    """

    def __init__(
        self, client: OAuthClient, *, resource: str, clock: Clock, redact: Callable[[str], str] | None = None
    ) -> None:
        self._client = client
        self._resource = resource
        self._clock = clock
        self._redact = redact
        self._token: SecretStr | None = None
        self._until = 0.0

    def token(self, *, fresh: bool = False, before: Callable[[], None] | None = None) -> tuple[SecretStr, int]:
        """A token and the seconds for which it may be kept. Raises TokenRefused, and whatever `before` raises.

        `fresh` is for a token that the server did not take: the one that is kept is forgotten. `before` is called
        right before a token is asked for.
        """
        left = int(self._until - self._clock.monotonic())
        if self._token is not None and left > 0 and not fresh:
            return self._token, left
        self._token = None
        if before is not None:
            before()
        token, lives = self._ask()
        usable = min(lives, LONGEST_SECONDS) - int(LOCAL_EARLY.total_seconds())
        if usable > 0:
            self._token, self._until = token, self._clock.monotonic() + usable
        return token, max(usable, 0)

    def _ask(self) -> tuple[SecretStr, int]:
        from mcp.shared.auth import OAuthToken

        parts = urlsplit(self._client.token_url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        form, headers = self._form()
        try:
            with transport.client(f"{parts.scheme}://{parts.netloc}", timeout=TIMEOUT, redact=self._redact) as http:
                # Not idempotent: asking again could leave a second token behind that nobody uses.
                answer = http.request("POST", path, headers=headers, data=form, idempotent=False)
                if answer.status != 200:
                    raise TokenRefused(http.describe("POST", parts.path or "/", answer))
        except (transport.TransportError, SettingsError) as error:
            raise TokenRefused(f"the authorization server gave no answer: {error}") from None
        try:
            found = OAuthToken.model_validate_json(answer.body)
        except ValidationError:
            raise TokenRefused(f"POST {parts.path or '/'} answered with what is not a bearer token") from None
        if not _TOKEN.fullmatch(found.access_token):
            raise TokenRefused(f"POST {parts.path or '/'} answered with a token that no header can hold")
        lives = UNTOLD_SECONDS if found.expires_in is None else found.expires_in
        return SecretStr(found.access_token), lives

    def _form(self) -> tuple[dict[str, str], dict[str, str]]:
        """The request's form and headers, with the client's credentials as RFC 6749 §2.3.1 has them."""
        from mcp.client.auth.oauth2 import OAuthContext
        from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata

        metadata = OAuthClientMetadata(
            redirect_uris=None,
            grant_types=["client_credentials"],
            token_endpoint_auth_method="client_secret_basic",  # noqa: S106 - the name of a method
            scope=" ".join(self._client.scopes) or None,
        )
        context = OAuthContext(self._resource, metadata, _Nowhere(), None, None)
        context.client_info = OAuthClientInformationFull(
            client_id=self._client.client_id.get_secret_value(),
            client_secret=self._client.client_secret.get_secret_value(),
            token_endpoint_auth_method="client_secret_basic",  # noqa: S106 - the name of a method
        )
        form = {"grant_type": "client_credentials", "resource": context.get_resource_url()}
        if metadata.scope:
            form["scope"] = metadata.scope
        return context.prepare_token_auth(form, {})


class _Nowhere:
    """The SDK's token storage, which a token that is kept for minutes does not need."""

    async def get_tokens(self) -> OAuthToken | None:
        return None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        del tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        del client_info
