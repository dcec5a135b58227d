"""What the gate refuses about MCP tools and the environment (ADR §4.5, §6.2)."""

from __future__ import annotations

from typing import Final

from tests.gate.good import GONE, Case, cases
from tests.gate.spellings import BYPASS_SPELLED, SECRETS_SPELLED


def _granting(code: str, *names: str) -> tuple[Case, ...]:
    return tuple(
        case
        for name in names
        for case in (
            Case(f"{name} as a name", {"mcp_tools": [name]}, code, "mcp"),
            Case(
                f"{name} behind a name",
                {"mcp_tools": [{"name": "harmless", "server": "github", "tool": name}]},
                code,
                "mcp",
            ),
        )
    )


FORBIDDEN_TOOLS: Final = (
    *_granting("H1.actions-secrets", *(name for name in SECRETS_SPELLED if ":" not in name), "github_create_secret"),
    *_granting("H1.protection-bypass", *BYPASS_SPELLED, "github_update_branch_protection"),
)

_SERVER: Final = {"command": ["tool"]}
_REMOTE: Final = {"url": "https://mcp.example/mcp"}
_OAUTH: Final = {
    "token_url": "https://auth.example/token",
    "client_id": "INFISICAL_CLIENT_ID",
    "client_secret": "INFISICAL_CLIENT_SECRET",
}
TOOLS: Final = (
    *cases("mcp.empty", "mcp", "mcp_tools", {"an empty list": [], "left out": GONE}),
    *cases("mcp.wildcard", "mcp", "mcp_tools", {name: [name] for name in ("*", "github_*", "github_?", "*_create")}),
    *cases("mcp.wildcard", "mcp", "mcp_tools_excluded", {"an excluded wildcard": ["stripe_*"]}),
    *cases(
        "mcp.tool-name",
        "mcp",
        "mcp_tools",
        {
            name: [name]
            for name in ("github_pr_cr\u00e9ate", "github_\u0440r_create", "a b", "x\n", "x\u200b", "a/b", "\uff41")
        },
    ),
    *cases("mcp.tool-name", "mcp", "mcp_tools_excluded", {"an excluded look-alike": ["stripe_\u0441harge"]}),
    *cases(
        "mcp.duplicate",
        "mcp",
        "mcp_tools",
        {
            "twice": ["list_issues", "list_issues"],
            "twice, two forms": ["x", {"name": "x", "server": "github", "tool": "y"}],
        },
    ),
    *cases(
        "mcp.contradiction",
        "mcp",
        "mcp_tools_excluded",
        {
            "by name": ["github_pr_create"],
            "by the server's own name": ["create_pull_request"],
            "by server and tool": ["github_create_pull_request"],
        },
    ),
    Case(
        "a string, excluded by the server's own name",
        {"mcp_tools": ["github_list_issues"], "mcp_tools_excluded": ["list_issues"]},
        "mcp.contradiction",
        "mcp",
    ),
    Case(
        "a server's own name, excluded by server and tool",
        {"mcp_tools": ["list_issues"], "mcp_tools_excluded": ["github_list_issues"]},
        "mcp.contradiction",
        "mcp",
    ),
    *cases(
        "mcp.server-unknown",
        "mcp",
        "mcp_tools",
        {"a server that is not declared": [{"name": "x", "server": "gitlab", "tool": "y"}]},
    ),
    *cases("mcp.server-unknown", "mcp", "mcp_servers", {"no server at all": {}}, mcp_tools=["list_issues"]),
    *cases(
        "mcp.schema-ref",
        "mcp",
        "mcp_tools",
        {
            keyword: [{"name": "x", "arguments": {"properties": {"a": {keyword: "https://schemas.invalid/a.json"}}}}]
            for keyword in ("$ref", "$dynamicRef", "$recursiveRef")
        },
    ),
    *cases(
        "mcp.secret-unknown",
        "mcp",
        "mcp_servers.github.env",
        {name: {"TOKEN": name} for name in ("GITHUB_ADMIN_TOKEN", "INFISICAL_ADMIN_SECRET", "PATH", "gh_token")},
    ),
    *cases(
        "mcp.secret-unknown",
        "mcp",
        "mcp_servers.other",
        {"a surface not asked for": {**_SERVER, "env": {"KEY": "STRIPE_KEY"}}},
        **{"surfaces.stripe": GONE},
    ),
    *cases(
        "mcp.secret-unknown",
        "mcp",
        "mcp_servers.remote",
        {
            "a header's": {**_REMOTE, "headers": {"X-Api-Key": "STRIPE_KEY"}},
            "a header's, after a prefix": {
                **_REMOTE,
                "headers": {"Authorization": {"variable": "SOME_TOKEN", "prefix": "Bearer "}},
            },
            "a client's id": {**_REMOTE, "oauth": {**_OAUTH, "client_id": "CLIENT_ID"}},
            "a client's secret": {**_REMOTE, "oauth": {**_OAUTH, "client_secret": "gh_token"}},
        },
        **{"surfaces.stripe": GONE},
    ),
    *cases(
        "mcp.url-plain",
        "mcp",
        "mcp_servers.remote",
        {
            **{
                url: {"url": url}
                for url in (
                    *(
                        "http://mcp.example/mcp",
                        "http://10.0.0.1/mcp",
                        "http://0.0.0.0:1/mcp",
                        "http://localhost.evil/mcp",
                    ),
                    *(
                        "http://127.0.0.1.evil/mcp",
                        "http://[::ffff:1.2.3.4]/mcp",
                        "http://2130706433/mcp",
                        "http://mylocalhost/",
                    ),
                )
            },
            "a token's": {**_REMOTE, "oauth": {**_OAUTH, "token_url": "http://auth.example/token"}},
        },
    ),
    *cases(
        "mcp.resources-wide",
        "mcp",
        "mcp_servers.github.allow",
        {
            uri: {"resources": [uri]}
            for uri in (
                "*",
                "file*",
                "file:*",
                "file:/*",
                "file://*",
                "file:///*",
                "https://*",
                "docs://*/x",
                "docs://a/*b*",
                "**",
            )
        },
    ),
    *cases("mcp.wildcard", "mcp", "mcp_servers.github.allow", {"every prompt": {"prompts": ["*"]}}),
    *cases(
        "mcp.allow-empty",
        "mcp",
        "mcp_servers.github.allow",
        {"subscriptions to nothing": {"subscribe": True}, "completion of nothing": {"completion": True}},
    ),
    *cases(
        "mcp.limit",
        "mcp",
        "mcp_tools",
        {
            f"{name} {number}": [{"name": "list_issues", "limits": {name: number}}]
            for name in ("calls", "per_minute")
            for number in (0, -1)
        },
    ),
    *cases(
        "mcp.log-credential",
        "mcp",
        "mcp_tools",
        {
            name: [{"name": "list_issues", "log_arguments": ["title", name]}]
            for name in ("password", "api_key", "apikey", "client-secret", "accessToken", "token", "Cookie", "jwt")
        },
    ),
    *cases(
        "mcp.format-place",
        "mcp",
        "mcp_tools",
        {
            name: [
                {"name": "list_issues", "arguments": {"properties": {"r": {"items": {"anyOf": [{"format": name}]}}}}}
            ]
            for name in ("repository", "repository-owner", "repository-name")
        },
        **{"surfaces.github": GONE, "mcp_servers.github.env": {}},
    ),
)

TOOLS_WARNED: Final = (
    *(
        Case(
            f"a remote server that may ask for {what}",
            {"mcp_servers.remote": {**_REMOTE, "allow": {what: True}}},
            "mcp.remote-asks",
            "mcp",
        )
        for what in ("sampling", "elicitation", "roots")
    ),
)

LOADER: Final = (
    *(
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "DYLD_INSERT_LIBRARIES",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "NODE_OPTIONS",
        "PERL5OPT",
    ),
    *(
        "RUBYOPT",
        "JAVA_TOOL_OPTIONS",
        "BASH_ENV",
        "ENV",
        "IFS",
        "GIT_SSH_COMMAND",
        "SSH_AUTH_SOCK",
        "PATH",
        "path",
        "HOME",
    ),
    *("MAKEFLAGS", "ELECTRON_RUN_AS_NODE", "ERL_AFLAGS", "JULIA_LOAD_PATH", "OCAMLRUNPARAM", "GUILE_LOAD_PATH"),
    *("GTK_MODULES", "QT_PLUGIN_PATH", "VIMINIT", "EXINIT", "AWKPATH", "ANSIBLE_CONFIG", "HGRCPATH", "KRB5_CONFIG"),
    *("ASAN_OPTIONS", "UBSAN_OPTIONS", "LIBPATH", "COREPACK_HOME", "TERMINFO", "TERMINFO_DIRS", "erl_flags"),
    *(
        "_JAVA_OPTIONS",
        "IBM_JAVA_OPTIONS",
        "TCLLIBPATH",
        "GST_PLUGIN_PATH",
        "TF_CLI_ARGS",
        "SVN_SSH",
        "CMAKE_PREFIX_PATH",
    ),
    *("HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE", "GCONV_PATH", "TMPDIR", "XDG_CONFIG_HOME", "npm_config_registry"),
)
ADMIN: Final = (
    *("INFISICAL_ADMIN_TOKEN", "MY_ADMIN_KEY", "my_admin_key", "GH_TOKEN", "gh_token", "AWS_ACCESS_KEY_ID"),
    *("STRIPE_KEY", "VAULT_ADDR", "HANDOFF_TASK_SLUG", "HEROKU_API_KEY", "CLOUDFLARE_API_TOKEN", "APPLE_IAP_JWT"),
    *("X_ROOT_TOKEN_Y", "GCP_SERVICE_ACCOUNT", "BOOTSTRAP_ID", "SIGNING_PRIVATE_KEY"),
)
CREDENTIAL: Final = (
    "DB_PASSWORD",
    "db_password",
    "TOKEN",
    "SENTRY_DSN",
    "DATABASE_URL",
    "SLACK_TOKEN",
    "X_API_KEY",
    "X_PAT",
    *("PGPASSWORD", "PGPASSFILE", "DB_PASS", "PASS", "MYSECRET", "JWT", "SESSION_JWT_KEY", "COOKIE", "SESSION_COOKIE"),
    *("MYSQL_PWD", "MYTOKEN", "SECRET_ID", "X_APIKEY_2", "CREDENTIALS_JSON", "KEY_PASSPHRASE", "BEARER"),
)
VENDOR: Final = ("GITHUB_API_URL", "AWS_REGION", "CLAUDE_CONFIG_DIR", "stripe_account")
VENDOR_CREDENTIAL: Final = ("GITHUB_TOKEN", "ANTHROPIC_API_KEY", "GITHUB_PERSONAL_ACCESS_TOKEN", "AZURE_CLIENT_SECRET")
CREDENTIAL_VALUES: Final = {
    # Written in two parts, so that nothing in this file looks like a credential itself.
    "a GitHub token": "ghp" + "_" + "a" * 36,
    "a fine-grained PAT": "github" + "_pat_" + "a" * 40,
    "a Stripe live key": "sk" + "_live_" + "a" * 24,
    "a restricted key": "rk" + "_test_" + "a" * 24,
    "an AWS key id": "AK" + "IA" + "A" * 16,
    "a Heroku key": "HRKU" + "-" + "a" * 36,
    "a private key": "-----BEGIN " + "EC PRIVATE KEY-----",
    "a JWT": "eyJ" + "a" * 20 + ".eyJ" + "a" * 20 + ".",
    "a password in a URL": "postgres://user" + ":hunter2@db.example/x",
    "a password without a user in a URL": "redis://:" + "pw@cache.example",
    "a password with a colon in a URL": "amqp://user" + ":a:b@queue.example",
    "a GitLab token": "glpat" + "-" + "a" * 20,
    "an OpenAI project key": "sk" + "-proj-" + "a" * 24,
    "an OpenAI key": "sk" + "-" + "a" * 48,
    "an npm token": "npm" + "_" + "a" * 36,
    "a Google API key": "AI" + "za" + "a" * 35,
    "a SendGrid key": "SG" + "." + "a" * 22 + "." + "a" * 43,
    "a PyPI token": "pypi" + "-AgEI" + "a" * 40,
    "a Slack app token": "xapp" + "-1-" + "A" * 12,
    "inside other text": "the key is sk" + "_test_" + "a" * 24 + ", keep it",
}

_PLAIN: Final = "mcp_servers.github.plain_env"
ENVIRONMENT: Final = (
    *(
        case
        for place in ("env", _PLAIN)
        for code, named in (("D7.env-loader", LOADER), ("H1.env-admin", ADMIN), ("H6.env-credential", CREDENTIAL))
        for case in cases(code, place, place, {f"{place} {name}": {name: "x"} for name in named})
    ),
    *cases("H1.env-admin", "env", "env", {f"env {name}": {name: "x"} for name in VENDOR + VENDOR_CREDENTIAL}),
    *cases("H6.env-credential", _PLAIN, _PLAIN, {f"{_PLAIN} {name}": {name: "x"} for name in VENDOR_CREDENTIAL}),
    *cases(
        "D7.env-loader",
        "mcp_servers.github.env",
        "mcp_servers.github.env",
        {f"a server's {name}": {name: "GH_TOKEN"} for name in LOADER},
    ),
    *(
        case
        for place in ("env", _PLAIN)
        for case in cases(
            "H6.secret-in-spec",
            place,
            place,
            {f"{place}, {name}": {"NOTE": value} for name, value in CREDENTIAL_VALUES.items()},
        )
    ),
    *cases(
        "H6.secret-in-spec",
        "mcp_servers.github.command",
        "mcp_servers.github.command",
        {f"command, {name}": ["server", f"--key={value}"] for name, value in CREDENTIAL_VALUES.items()},
    ),
    *cases(
        "H6.secret-in-spec",
        "env",
        "card",
        {f"card, {name}": f"#3206 {value}" for name, value in CREDENTIAL_VALUES.items()},
    ),
    *cases(
        "H6.secret-in-spec",
        "env",
        "revocation",
        {
            f"revocation, {name}": {"by_hand": {"who": "operator@example.com", "how": value}}
            for name, value in CREDENTIAL_VALUES.items()
        },
    ),
    *cases(
        "H6.secret-in-spec",
        "env",
        "mcp_tools",
        {
            "a tool's arguments": [
                {
                    "name": "github_list_issues",
                    "server": "github",
                    "tool": "list_issues",
                    "arguments": {"properties": {"key": {"const": next(iter(CREDENTIAL_VALUES.values()))}}},
                }
            ],
        },
    ),
)
