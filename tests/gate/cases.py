"""Every case of the gate, as data: one change to a good spec, and the one refusal or warning that follows."""

from __future__ import annotations

from typing import Final

from tests.gate.cases_task import LIFETIME, LOOSENED, NOT_ALLOWED, SURFACE_LIFETIME, TASK
from tests.gate.cases_tools import ENVIRONMENT, FORBIDDEN_TOOLS, TOOLS, TOOLS_WARNED
from tests.gate.cases_vendors import AWS, CLOUDFLARE, FORBIDDEN_PERMISSIONS, GITHUB, HEROKU, LIVE_FINANCE, STRIPE, VAULT
from tests.gate.good import GONE, Case

REFUSED: Final = (
    *(*TASK, *LIFETIME, *SURFACE_LIFETIME, *GITHUB, *FORBIDDEN_PERMISSIONS, *FORBIDDEN_TOOLS, *VAULT, *STRIPE, *AWS),
    *(*CLOUDFLARE, *HEROKU, *LIVE_FINANCE, *TOOLS, *ENVIRONMENT, *NOT_ALLOWED, *LOOSENED),
)

WARNED: Final = (
    Case("stripe", {"surfaces.alpaca": GONE}, "H2.revoked-by-a-person", "stripe"),
    Case("alpaca", {"surfaces.stripe": GONE}, "H2.revoked-by-a-person", "alpaca"),
    Case("no exclusions", {"mcp_tools_excluded": []}, "mcp.no-exclusions", "mcp"),
    Case(
        "a whole staging folder",
        {"surfaces.infisical.read": ["/MooseQuest/queue/staging/*"]},
        "H1.vault-glob-wide",
        "infisical",
    ),
    *TOOLS_WARNED,
)
