"""The policy: what a spec may ask for, as data that a reader can hold against the ADR line by line.

Nothing here decides; gate.py does. Every field cites the line of the ADR it stands for. An operator may tighten a policy
(`Policy.tightened`), never loosen it: each field says which direction is tighter, and anything else is a SettingsError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from agent_token_injector.errors import SettingsError
from agent_token_injector.signing import VerifyKey, digest

POLICY_TYPE: Final = "agent_token_injector/policy/v1"

Level = Literal["read", "write"]

GITHUB_PERMISSIONS: Final[Mapping[str, Level]] = MappingProxyType(
    # ADR §5.1: "A handoff agent needs: contents:write, pull_requests:write, issues:write"
    {"contents": "write", "pull_requests": "write", "issues": "write"}
)

FORBIDDEN_BY_NAME: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    # A permission or tool is forbidden when its name, letters only, contains one of these; first match wins.
    {
        "secret": ("H1.actions-secrets", "Actions secrets are forbidden by design (ADR §3.1, §5.1)"),
        "bypass": ("H1.protection-bypass", "bypassing branch protection is forbidden by design (ADR §3.1)"),
        "protection": ("H1.protection-bypass", "changing branch protection is forbidden by design (ADR §3.1)"),
        "protectedbranch": ("H1.protection-bypass", "changing branch protection is forbidden by design (ADR §3.1)"),
        "ruleset": ("H1.protection-bypass", "changing rulesets is changing branch protection (ADR §3.1)"),
        "administration": ("H1.github-administration", "administration is an admin scope (ADR §5.1)"),
        "admin": ("H1.github-administration", "administration is an admin scope (ADR §5.1)"),
        "workflow": ("H1.github-workflows", "handoffs do not modify CI definitions (ADR §5.1)"),
        "organization": ("H1.github-organization", "organisation permissions reach beyond one repository (ADR §7)"),
    }
)

STRIPE_ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    # The ADR writes a resource as Stripe's API path does; Stripe's permission vocabulary names it otherwise.
    {
        "checkout_sessions": "checkout_session",
        "subscriptions": "subscription",
        "webhook_endpoints": "webhook",
        "customers": "customer",
        "charges": "charge",
        "refunds": "charge",
        "payouts": "payout",
        "transfers": "transfer",
        "invoices": "invoice",
        "products": "product",
        "prices": "plan",
        "plans": "plan",
        "coupons": "coupon",
        "promotion_codes": "promotion_code",
        "events": "event",
        "payment_intents": "payment_intent",
        "setup_intents": "setup_intent",
        "payment_methods": "payment_method",
        "disputes": "dispute",
        "billing_portal": "customer_portal",
        "test_clocks": "billing_clock",
        "tax_rates": "tax_rate",
    }
)

STRIPE_READABLE: Final = frozenset(
    # ADR §3.1 "read-only scope if test mode supports it": what can be read without disclosing another credential.
    [
        "balance",
        "balance_transaction_source",
        "billing_clock",
        "billing_meter",
        "billing_meter_event",
        "charge",
        "checkout_session",
        "coupon",
        "credit_note",
        "customer",
        "customer_portal",
        "dispute",
        "entitlement",
        "event",
        "invoice",
        "payment_intent",
        "payment_links",
        "payment_method",
        "payment_method_configurations",
        "payment_method_domain",
        "payout",
        "plan",
        "product",
        "promotion_code",
        "quote",
        "review",
        "setup_intent",
        "shipping_rate",
        "subscription",
        "tax_rate",
        "tax_settings",
        "usage_record",
        "webhook",
    ]
)

STRIPE_WRITABLE: Final = frozenset(
    # ADR §8.2: "No customer PII write. No refund capability." Nothing here moves money, pays out, writes a customer,
    # or answers with a credential: a new webhook endpoint answers with its signing secret, a new session of the
    # customer portal with a URL that signs in as the customer, so both can be read and not written. A refund is
    # charge_write (facts: Stripe has no refund-only permission).
    [
        "billing_clock",
        "billing_meter",
        "billing_meter_event",
        "checkout_session",
        "coupon",
        "payment_links",
        "plan",
        "product",
        "promotion_code",
        "quote",
        "shipping_rate",
        "subscription",
        "tax_rate",
    ]
)

LOADER_NAMES: Final[tuple[str, ...]] = (
    # Names that change how a program starts, what it loads or whom it trusts (D7); a * stands for any beginning or end.
    *("LD_*", "DYLD_*", "LIBPATH", "SHLIB_PATH", "GCONV_PATH", "LOCPATH", "NLSPATH", "MALLOC_*", "GLIBC_*"),
    *("*SAN_OPTIONS", "*SAN_SYMBOLIZER_PATH", "TERMINFO*", "TERMCAP", "TERMPATH", "INPUTRC", "PYTHON*"),
    *("VIRTUAL_ENV", "PIP_*", "PIPENV_*", "UV_*", "CONDA_*", "POETRY_*", "NODE_*", "NPM_*", "PNPM_*", "YARN_*"),
    *("COREPACK_*", "TS_NODE_*", "ELECTRON_*", "DENO_*", "BUN_*", "PERL*", "RUBY*", "GEM_*", "BUNDLE_*", "JRUBY_*"),
    *("JAVA_*", "*JAVA_OPTIONS", "JDK_*", "CLASSPATH", "MAVEN_*", "GRADLE_*", "ANT_OPTS", "ANT_ARGS", "ANT_HOME"),
    *("SBT_*", "GROOVY_*", "KOTLIN_*", "GO*", "CARGO*", "RUST*", "DOTNET_*", "CORECLR_*", "PHP*", "LUA_*", "R_*"),
    *("ERL_*", "ELIXIR_*", "MIX_HOME", "MIX_EXS", "MIX_ARCHIVES", "JULIA_*", "OCAML*", "CAML*", "GHC*", "GUILE_*"),
    *("TCL*", "AWKPATH", "AWKLIBPATH", "MAKEFLAGS", "MAKEFILES", "GNUMAKEFLAGS", "MFLAGS", "CMAKE_*", "PKG_CONFIG*"),
    *("GCC_*", "COMPILER_PATH", "LIBRARY_PATH", "CPATH", "NIX_*", "ASDF_*", "MISE_*", "DIRENV_*", "NVM_*", "PYENV_*"),
    *("GTK_*", "GIO_*", "GDK_*", "GST_*", "QT_*", "QML*", "ANSIBLE_*", "HELM_*", "TF_CLI_*", "TF_PLUGIN_*", "KRB5*"),
    *("ODBC*", "PGSERVICEFILE", "PGSYSCONFDIR", "MYSQL_HOME", "NETRC", "WGETRC", "BASH_*", "BASHOPTS", "SHELLOPTS"),
    *("ENV", "IFS", "PS0", "PS1", "PS2", "PS4", "PROMPT_COMMAND", "ZDOTDIR", "SHELL", "FPATH", "CDPATH", "VIM"),
    *("VIMINIT", "VIMRUNTIME", "MYVIMRC", "GVIMINIT", "EXINIT", "EMACS*", "GIT_*", "HGRCPATH", "HGEDITOR", "HGMERGE"),
    *("SVN_SSH", "SVN_EDITOR", "RSYNC_RSH", "RSYNC_CONNECT_PROG", "CVS_RSH", "SSH_*", "GPG_*", "GNUPGHOME", "EDITOR"),
    *("VISUAL", "PAGER", "MANPAGER", "BROWSER", "LESS", "LESSOPEN", "LESSCLOSE", "DBUS_*", "XDG_*", "DISPLAY"),
    *("WAYLAND_*", "XAUTHORITY", "SUDO_*", "KUBECONFIG", "DOCKER_*", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
    *("NO_PROXY", "FTP_PROXY", "WS_PROXY", "WSS_PROXY", "SSL_*", "OPENSSL_*", "CURL_*", "REQUESTS_CA_BUNDLE"),
    *("HOSTALIASES", "RES_OPTIONS", "LOCALDOMAIN", "PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TMP", "TEMP", "TZ"),
    *("LANG", "LC_*", "TERM", "PWD", "OLDPWD"),
)

ADMIN_NAMES: Final[tuple[str, ...]] = (
    # ADR §6.2 "No admin env vars": names under which admin identities and this tool's own configuration travel.
    *("*ADMIN*", "*ROOT_TOKEN*", "*MASTER_KEY*", "*SERVICE_ACCOUNT*", "*PRIVATE_KEY*", "*BOOTSTRAP*"),
    *("HANDOFF_*", "INFISICAL_*", "VAULT_*"),
)

VENDOR_NAMES: Final[tuple[str, ...]] = (
    # The agent's environment has these from its surfaces or not at all; an MCP server may be told a vendor's address.
    *("GH_*", "GITHUB_*", "STRIPE_*", "CLOUDFLARE_*", "CF_*", "HEROKU_*", "AWS_*", "AZURE_*", "GOOGLE_*", "GCP_*"),
    *("ALPACA_*", "APCA_*", "APPLE_*", "ANTHROPIC_*", "OPENAI_*", "CLAUDE_*"),
)

CREDENTIAL_NAMES: Final[tuple[str, ...]] = (
    # H6: a plain value in a spec is no secret, so it does not go under a secret's name. Words that begin or end innocent
    # ones (PASSENGERS, MAX_TOKENS) count only where they stand alone or at the end.
    *("*SECRET*", "*PASSWORD*", "*PASSWD*", "*PASSPHRASE*", "*_PASS", "PASS", "PGPASS*", "*_PWD", "*CREDENTIAL*"),
    *("*TOKEN", "*API_KEY*", "*APIKEY*", "*_ACCESS_KEY*", "*_PAT", "*JWT*", "*COOKIE*", "*BEARER*", "DATABASE_URL"),
    *("*_DSN", "DSN", "*CONNECTION_STRING"),
)

CREDENTIAL_SHAPES: Final = re.compile(
    # H6: what a credential looks like, whatever it is called (facts/surfaces.md §2.9).
    r"gh[psour]_[A-Za-z0-9]{16}|github_pat_[A-Za-z0-9_]{16}|gl(?:pat|ptt|cbt|soat|agent|imt|oas|dt|rt|ft)-[A-Za-z0-9_-]{16}|"
    r"[sr]k_(?:live|test|org)_[A-Za-z0-9]{8}|whsec_[A-Za-z0-9]{16}|"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}|cf(?:at|ut|k)_[A-Za-z0-9]{16}|HRKU-[A-Za-z0-9-]{16}|AIza[A-Za-z0-9_-]{30}|"
    r"ya29\.[A-Za-z0-9_-]{20}|-----BEGIN [A-Z ]*PRIVATE KEY|AGE-SECRET-KEY-1|hvs\.[A-Za-z0-9_-]{20}|"
    r"(?<![A-Za-z0-9])sk-(?:ant|proj|svcacct|admin|or)-[A-Za-z0-9_-]{10}|(?<![A-Za-z0-9])sk-[A-Za-z0-9]{32}|"
    r"npm_[A-Za-z0-9]{20}|pypi-AgEI|rubygems_[a-f0-9]{32}|dckr_pat_[A-Za-z0-9_-]{16}|hf_[A-Za-z0-9]{30}|"
    r"do[opr]_v1_[a-f0-9]{32}|(?<![A-Za-z0-9])SG\.[A-Za-z0-9_-]{16,40}\.[A-Za-z0-9_-]{16}|sq0[a-z]{3}-[A-Za-z0-9_-]{16}|"
    r"shp[a-z]{2}_[A-Fa-f0-9]{32}|xox[a-z]-[A-Za-z0-9-]{10}|xapp-[0-9]-[A-Za-z0-9-]{10}|"
    r"eyJ[A-Za-z0-9_-]{10,1000}\.eyJ[A-Za-z0-9_-]{10}|"
    # The user's part of an address may be empty, and a password may hold a colon.
    r"://[^/\s@:]*:[^/\s@]+@"
)

REVOCATION_PATHS: Final[Mapping[str, str]] = MappingProxyType(
    # ADR §4.6 and its corrections in facts/surfaces.md §1: who deletes what, and where, without this tool.
    {
        "infisical": "vault admin: delete the identity {identity} (at once)",
        "github": "`handoff revoke` with the token itself; else it dies within its hour, or an owner of the "
        "organisation suspends the App (which stops every handoff of that App)",
        "stripe": "operator: delete the restricted key {identity} in the Stripe Dashboard, Developers, API keys",
        "aws": "AWS admin: deny and delete the role {identity} (seconds to minutes)",
        "cloudflare": "account admin: delete the API token {identity} in the Cloudflare dashboard",
        "heroku": "bot user: delete the authorization {identity} in the Heroku account",
        "alpaca": "operator: regenerate or delete the key in the Alpaca dashboard; no API can",
        "apple_iap": "nothing to do: the token dies within minutes; the key never leaves the provisioner",
    }
)

GRANTED_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    # The names under which each surface's credential reaches the agent (design.md §3); SurfaceFacts must agree.
    "infisical": ("INFISICAL_CLIENT_ID", "INFISICAL_CLIENT_SECRET"),
    "github": ("GH_TOKEN",),
    "stripe": ("STRIPE_KEY",),
    "aws": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    "cloudflare": ("CLOUDFLARE_API_TOKEN",),
    "heroku": ("HEROKU_API_KEY",),
    "alpaca": ("ALPACA_API_KEY_ID", "ALPACA_API_SECRET_KEY"),
    "apple_iap": ("APPLE_IAP_JWT",),
}


class Policy(BaseModel):
    """The ceilings in force. The defaults are the ADR's own and the loosest there is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_lifetime: timedelta = timedelta(hours=24)
    """ADR §6.1 (c): "a fixed maximum (24h)"."""
    max_lifetime_without_enrolment: timedelta = timedelta(hours=1)
    """ADR §6.2: over one hour a handoff is enrolled in Velvet, or a person is named who revokes by hand."""
    vault_token_ttl: timedelta = timedelta(minutes=15)
    """ADR §3.1: "Access token: 15 min"."""
    surface_lifetimes: dict[str, timedelta] = {
        "github:app-installation": timedelta(hours=1),  # ADR §3.1 "1-hour installation token"
        "github:fine-grained-pat": timedelta(hours=24),  # ADR §3.1 "max 24h for handoffs"
        "stripe": timedelta(hours=24),  # ADR §6.1 (c)
        "aws": timedelta(hours=1),  # ADR §3.1 "Session duration: max 1 hour"
        "cloudflare": timedelta(hours=24),  # ADR §3.1 "set max 24h for handoff tokens"
        "heroku": timedelta(hours=24),  # ADR §6.1 (c)
        "alpaca": timedelta(hours=24),  # ADR §6.1 (c)
        "apple_iap": timedelta(minutes=15),  # facts/surfaces.md §2.7: Apple allows 60 min, 15 suffice
    }
    """No credential of a surface may be asked for longer than this."""
    surfaces: frozenset[str] = frozenset(REVOCATION_PATHS)
    """The surfaces that may be asked for at all (ADR §3.1)."""
    github_permissions: dict[str, Level] = dict(GITHUB_PERMISSIONS)
    """ADR §5.1: these, at most at these levels, "nothing else" (§6.2)."""
    protected_branches: frozenset[str] = frozenset({"main", "master", "staging", "production"})
    """ADR §5.1: no direct push to "main, staging, or any other protected branch"."""
    stripe_readable: frozenset[str] = STRIPE_READABLE
    stripe_writable: frozenset[str] = STRIPE_WRITABLE
    aws_actions: frozenset[str] = frozenset({"ssm:GetParameter", "s3:GetObject", "s3:PutObject", "sqs:SendMessage"})
    """ADR §3.1, §8: "only the SSM Parameter Store paths the handoff needs or the S3 prefix", "sqs:SendMessage on one queue"."""
    cloudflare_permissions: dict[str, Level] = {"dns": "write", "zone waf": "write", "zone": "read"}
    """ADR §3.1: "the exact resource and action needed (DNS read-only, WAF rule read-only)"; the zone's own name to find it."""
    heroku_permissions: dict[str, Level] = {"config_vars": "write", "deploy": "write"}
    """ADR §3.1: "config-vars read/set on one named app, OR deploy to one named pipeline stage"."""
    apple_production_tasks: frozenset[str] = frozenset({"iap-notif-handler"})
    """ADR §3.1: production only "for designated IAP notification handler task"."""
    alpaca_paper_cycles: int = 1
    """ADR §12: "a paper-profitable-for-N-cycles gate pass"; the least N."""
    max_approval_age: timedelta = timedelta(hours=24)
    """An approval is for the handoff at hand, not for a season (H7)."""
    audit_retention_days: int = 90
    """ADR §6.2, §12: "retained per platform retention policy (90 days)"; more is tighter."""
    operators: dict[str, tuple[str, ...]] = {}
    """Who may approve, and with which public keys (`ed25519:...`). Listing a key here is configuration's to do."""
    velvet_enrolment: bool = False
    """Whether this installation can enrol a handoff in Velvet. Until it can, a long one names who revokes by hand."""

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the policy: which rules a manifest was made under."""
        return digest(POLICY_TYPE, self.to_dict())

    def ceiling(self, surface: str) -> timedelta:
        """The longest a credential of `surface` may live; nothing at all where a policy made in code left it out."""
        return self.surface_lifetimes.get(surface, timedelta(0))

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain JSON; sets in order, so that one policy has one digest."""
        document = self.model_dump(mode="json")
        return {key: sorted(value) if isinstance(value, list) else value for key, value in document.items()}

    def tightened(self, document: Mapping[str, Any]) -> Self:
        """The policy with some fields tightened. Raises SettingsError for a field unknown, wrong, or loosened."""
        unknown = sorted(set(document) - set(_TIGHTER))
        if unknown:
            raise SettingsError(
                f"the policy file sets {unknown[0]!r}, which it cannot",
                path=unknown[0],
                hint="it may set: " + ", ".join(sorted(_TIGHTER)),
            )
        try:
            wanted = type(self).model_validate({**self.model_dump(), **document})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path = ".".join(str(part) for part in first["loc"])
            raise SettingsError(f"the policy file's {path} is not usable", path=path, cause=first["msg"]) from None
        for name in document:
            if not _TIGHTER[name](getattr(self, name), getattr(wanted, name)):
                raise SettingsError(
                    f"the policy file's {name} would loosen the policy",
                    path=name,
                    cause="an operator may tighten a ceiling of the ADR and never raise it",
                    hint="leave it out to keep the ADR's own",
                )
        return wanted

    def loosened(self) -> tuple[str, ...]:
        """The fields of a policy built in code that are looser than the ADR; the gate refuses them all."""
        adr = Policy()
        return tuple(name for name, tighter in _TIGHTER.items() if not tighter(getattr(adr, name), getattr(self, name)))

    def with_operators(self, operators: Mapping[str, tuple[str, ...]]) -> Self:
        """The policy with the operators that the configuration lists. Raises SettingsError for a key that is none."""
        for keys in operators.values():
            for key in keys:
                VerifyKey.parse(key)
        return self.model_copy(update={"operators": dict(operators)})


def _at_most(old: Any, new: Any) -> bool:
    return bool(type(new)() < new <= old)


def _at_least(old: int, new: int) -> bool:
    return new >= old


def _each_at_most(old: dict[str, timedelta], new: dict[str, timedelta]) -> bool:
    # A ceiling that is left out would be no ceiling, so every key must still be there.
    return new.keys() == old.keys() and all(_at_most(old[key], new[key]) for key in old)


def _subset(old: frozenset[str], new: frozenset[str]) -> bool:
    return new <= old


def _superset(old: frozenset[str], new: frozenset[str]) -> bool:
    return new >= old


def _levels_within(old: dict[str, Level], new: dict[str, Level]) -> bool:
    return all(name in old and (level == "read" or old[name] == "write") for name, level in new.items())


_TIGHTER: Final = MappingProxyType(
    {
        "max_lifetime": _at_most,
        "max_lifetime_without_enrolment": _at_most,
        "vault_token_ttl": _at_most,
        "surface_lifetimes": _each_at_most,
        "surfaces": _subset,
        "github_permissions": _levels_within,
        "protected_branches": _superset,
        "stripe_readable": _subset,
        "stripe_writable": _subset,
        "aws_actions": _subset,
        "cloudflare_permissions": _levels_within,
        "heroku_permissions": _levels_within,
        "apple_production_tasks": _subset,
        "alpaca_paper_cycles": _at_least,
        "max_approval_age": _at_most,
        "audit_retention_days": _at_least,
    }
)


def name_matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether an environment variable's name matches one of `patterns` (`*` at either end), case folded."""
    upper = name.upper()
    for pattern in patterns:
        core = pattern.strip("*")
        starts, ends = not pattern.startswith("*"), not pattern.endswith("*")
        if starts and ends:
            found = upper == core
        elif starts:
            found = upper.startswith(core)
        elif ends:
            found = upper.endswith(core)
        else:
            found = core in upper
        if found:
            return True
    return False
