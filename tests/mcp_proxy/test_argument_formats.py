"""The helper formats of a grant's `arguments`, against a real directory tree and by the book."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy.argument_formats import HelperFormats, real_path
from agent_token_injector.mcp_proxy.grants import PROTECTED_BRANCHES, Grant, Places
from agent_token_injector.mcp_proxy.tool_policy import Allowed, ToolPolicy
from tests.requirements import requirement

if TYPE_CHECKING:
    from collections.abc import Callable

GITHUB = Places(repository="raxx/TradeMasterAPI")


def policy(schema: Any, places: Places) -> ToolPolicy:
    grant = Grant(name="t", arguments=schema)
    return ToolPolicy.resolve([grant], (), {"s": [{"name": "t", "inputSchema": {"type": "object"}}]}, places=places)


def fits(name: str, places: Places) -> Callable[[Any], bool]:
    """Whether a value of the argument `v` passes the format, through the whole policy."""
    made = policy({"properties": {"v": {"format": name}}, "required": ["v"]}, places)
    return lambda value: isinstance(made.decide("t", {"v": value}), Allowed)


def refusal(schema: Any, places: Places | None = None) -> str:
    with pytest.raises(SpawnRefused) as refused:
        policy(schema, places or Places())
    return str(refused.value.cause)


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    """A worktree with links that stay in it and links that leave it, beside a directory that is not its own."""
    root = tmp_path / "work"
    (root / "src" / "deep").mkdir(parents=True)
    (root / "src" / "a.py").write_text("a")
    (tmp_path / "work-other").mkdir()
    (tmp_path / "outside" / "inner").mkdir(parents=True)
    (tmp_path / "outside" / "secret").write_text("s")
    for name, target in {
        "inside": "src",
        "up": "..",
        "out": "../outside",
        "out-absolute": str(tmp_path / "outside"),
        "out-file": "../outside/secret",
        "inner": "../outside/inner",
        "dangling-out": "../outside/new",
        "dangling-in": "src/new",
        "chain": "chain2",
        "chain2": "out",
        "loop": "loop",
        "src/back": "../src",
        "through-missing": "missing/../../outside",
    }.items():
        (root / name).symlink_to(target)
    return root


# --- paths -------------------------------------------------------------------------------------------------------

INSIDE = [
    *(
        "src",
        "src/a.py",
        "./src/a.py",
        ".",
        "src/",
        "src//a.py",
        "inside/a.py",
        "src/../src/a.py",
        "src/back/back/a.py",
        "up/work/src",
    ),
    *(
        "new.txt",
        "src/new/deep/file",
        "inside/new",
        "dangling-in",
        "...",
        "..a",
        "a..b",
        "src/.hidden",
        "$id.tsx",
        "100%",
    ),
    *("a b", "caf\u00e9", "\u65e5\u672c/x", "a-b", "a~", "a'b", "src/c:d", "src/-x"),
]
OUTSIDE = [
    *(
        "..",
        "../",
        "../outside/secret",
        "src/../../outside/secret",
        "up",
        "out",
        "out/secret",
        "out/new",
    ),
    *("out-absolute/secret", "out-file", "inner", "inner/../secret", "dangling-out", "chain/secret", "loop", "loop/x"),
    *("../work-other", "../work/src", "src/../../work/src", "missing/../../outside", "missing/../src", "src/a.py/x"),
    *(
        "through-missing",
        "inside/../../outside",
        "src/a.py/../../../outside",
        "/etc/passwd",
        "/",
        "//",
        "/work",
        "x" * 5000,
    ),
    *(
        "",
        " ",
        " src",
        "src ",
        "\tsrc",
        "src\n",
        "src\x00",
        "src\x00/../..",
        "sr\x7fc",
        "src\x85",
        "\u00a0src",
        "src\u2003",
    ),
    *(
        "~",
        "~/x",
        "~root/x",
        "'src'",
        '"src"',
        '"../outside"',
        "-rf",
        "--output=x",
        "file:src/a.py",
        "file:///etc/passwd",
    ),
    *(
        "FILE:/etc/passwd",
        "http://x/y",
        "C:src",
        ":(top)src",
        "..\\outside",
        "src\\..\\..",
        "\\\\server\\share",
        "%2e%2e/x",
    ),
    *("..%2foutside", "%252e%252e", "src%00", "$HOME/x", "${HOME}/x", "$(pwd)", "src/$HOME", "\uff0e\uff0e/outside"),
    *("\u2025/outside", "..\uff0foutside", "\uff5e/x", "src\uff3c..", "file\uff1a//x"),
]


@requirement("mcp.path-in-worktree")
@pytest.mark.parametrize("path", INSIDE)
def test_a_path_inside_the_worktree_passes_relative_and_absolute(worktree: Path, path: str) -> None:
    check = fits("path-in-worktree", Places(worktree=str(worktree)))
    assert check(path)
    assert check(f"{worktree}/{path}")


@requirement("mcp.path-in-worktree")
@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leaves_the_worktree_or_could_be_read_so_is_refused(worktree: Path, path: str) -> None:
    assert not fits("path-in-worktree", Places(worktree=str(worktree)))(path)


@requirement("mcp.path-in-worktree")
@pytest.mark.parametrize(
    "path", ["up", "out/secret", "chain/secret", "dangling-out", "../outside/secret", "loop", "../work-other"]
)
def test_an_absolute_path_that_leaves_the_worktree_is_refused(worktree: Path, path: str) -> None:
    assert not fits("path-in-worktree", Places(worktree=str(worktree)))(f"{worktree}/{path}")


@requirement("mcp.path-in-worktree")
def test_both_readings_of_dots_after_a_link_must_lie_inside(worktree: Path) -> None:
    check = fits("path-in-worktree", Places(worktree=str(worktree)))
    # To the kernel the parent of outside/inner, to a reader of texts the worktree itself.
    assert not check("inner/../src")
    # The other way round: inside for the kernel, outside for a reader of texts.
    (worktree / "src" / "deep" / "down").symlink_to("../../src/deep")
    assert check("src/deep/down/../a.py")
    (worktree / "shallow").symlink_to("src/deep")
    assert not check("shallow/../../work-other")


@requirement("mcp.path-in-worktree")
def test_a_worktree_reached_through_a_link_is_the_directory_it_leads_to(worktree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("work")
    check = fits("path-in-worktree", Places(worktree=str(tmp_path / "link")))
    assert check("src/a.py")
    assert check(str(tmp_path / "link" / "src"))
    assert check(str(worktree / "src"))
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("outside")
    assert not check(str(tmp_path / "link" / "secret"))
    assert check("src/a.py")


@requirement("mcp.path-in-worktree")
def test_a_link_made_after_the_start_is_seen_at_the_next_decision(worktree: Path) -> None:
    check = fits("path-in-worktree", Places(worktree=str(worktree)))
    assert check("later/x")
    (worktree / "later").symlink_to("../outside")
    assert not check("later/x")


@requirement("mcp.path-in-worktree")
@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_directory_that_may_not_be_searched_is_not_guessed_about(worktree: Path) -> None:
    closed = worktree / "closed"
    closed.mkdir()
    (closed / "out").symlink_to("../../outside")
    closed.chmod(0)
    try:
        assert not fits("path-in-worktree", Places(worktree=str(worktree)))("closed/out")
    finally:
        closed.chmod(0o700)


@requirement("mcp.path-in-worktree")
def test_what_the_resolver_cannot_tell_is_refused() -> None:
    def resolver(path: str) -> str:
        if path == "/w":
            return path
        raise PermissionError(path)

    check = HelperFormats(Places(worktree="/w"), resolver).check("path-in-worktree")
    assert check is not None
    assert not check("a")


@requirement("mcp.path-in-worktree")
def test_a_worktree_that_is_everything_holds_nothing() -> None:
    check = fits("path-in-worktree", Places(worktree="/"))
    assert not check("/etc")
    assert not check("x")


@requirement("mcp.path-in-worktree")
def test_a_prefix_takes_absolute_paths_below_it_alone(worktree: Path) -> None:
    check = fits(f"path-in:{worktree}/src", Places())
    assert check(f"{worktree}/src")
    assert check(f"{worktree}/src/a.py")
    assert check(f"{worktree}/inside/a.py")
    assert check(f"{worktree}/src/new")
    for path in (
        "a.py",
        "src/a.py",
        str(worktree),
        f"{worktree}/src2",
        f"{worktree}/src/../up",
        f"{worktree}/out/secret",
    ):
        assert not check(path)


@requirement("mcp.helper-formats")
@pytest.mark.parametrize("prefix", ["", "relative", "/", "/a/", "/a/../b", "/a//b", "/a\\b", "~/x", "file:///a", "/a "])
def test_a_prefix_that_is_no_plain_absolute_directory_is_refused_at_the_start(prefix: str) -> None:
    assert "format path-in:" in refusal({"properties": {"v": {"format": f"path-in:{prefix}"}}})


PARTS = st.sampled_from(
    ["..", ".", "", "src", "deep", "inside", "out", "up", "inner", "back", "new", "a.py", "loop", "chain"]
)


@requirement("mcp.path-in-worktree")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=7), absolute=st.booleans())
def test_no_path_that_passes_is_outside_for_the_kernel_or_for_a_reader_of_texts(
    worktree: Path, parts: list[str], absolute: bool
) -> None:
    path = "/".join(parts)
    path = f"{worktree}/{path}" if absolute else path
    if fits("path-in-worktree", Places(worktree=str(worktree)))(path):
        joined = Path(worktree, path) if path else worktree
        for reading in (os.path.join(worktree, path), os.path.normpath(os.path.join(worktree, path))):  # noqa: PTH118
            assert Path(os.path.realpath(reading)).is_relative_to(worktree), joined


@requirement("mcp.path-in-worktree")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=7))
def test_a_path_is_resolved_as_the_kernel_does(worktree: Path, parts: list[str]) -> None:
    path = f"{worktree}/{'/'.join(parts)}"
    try:
        descriptor = os.open(path, os.O_PATH)
        expected: str | None = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - the kernel's own word
        os.close(descriptor)
    except FileNotFoundError:
        expected = None
    except OSError:
        with pytest.raises(OSError, match=r"."):
            real_path(path)
        return
    if expected is not None:
        assert real_path(path) == expected


# --- repository --------------------------------------------------------------------------------------------------


@requirement("mcp.repository-format")
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "repository",
            ["raxx/TradeMasterAPI", "RAXX/trademasterapi"],
            [
                *(
                    "raxx/other",
                    "raxx/TradeMasterAPI.git",
                    "raxx/TradeMasterAPI/",
                    "/raxx/TradeMasterAPI",
                    "TradeMasterAPI",
                ),
                *(
                    "raxx/TradeMasterAPI ",
                    "https://github.com/raxx/TradeMasterAPI",
                    "raxx/TradeMasterAPI\n",
                    "",
                    "raxx",
                ),
                *(
                    "raxx/../raxx/TradeMasterAPI",
                    "raxx%2FTradeMasterAPI",
                    "ra\u0445x/TradeMasterAPI",
                    "raxx//TradeMasterAPI",
                ),
            ],
        ),
        ("repository-owner", ["raxx", "Raxx"], ["raxx/", "other", "", "raxx ", "raxx/TradeMasterAPI", "\uff52axx"]),
        (
            "repository-name",
            ["TradeMasterAPI", "trademasterapi"],
            ["raxx", "TradeMasterAPI.git", "", "TradeMasterAP\u0131"],
        ),
    ],
)
def test_only_the_specs_own_repository_passes(name: str, good: list[str], bad: list[str]) -> None:
    check = fits(name, GITHUB)
    assert all(check(value) for value in good)
    assert [value for value in bad if check(value)] == []


@requirement("mcp.repository-format")
def test_a_letter_that_only_folds_to_one_of_the_name_is_another_letter() -> None:
    # U+212A and U+017F have k and s as their lower cases.
    check = fits("repository", Places(repository="kk/ss"))
    assert check("KK/SS")
    assert not check("\u212ak/ss")
    assert not check("kk/\u017fs")


# --- branches ----------------------------------------------------------------------------------------------------

PLAIN = [
    *(
        "handoff/nightly-report",
        "fix_1.2",
        "mainline",
        "feature/x/y",
        "Main2",
        "dependabot/npm_and_yarn/@types/node-20",
    ),
    *("a", "issue-3", "u/me@host", "c++", "fix#12", "deadbeef"),
]
NOT_PLAIN = [
    *(
        "",
        "/a",
        "a/",
        "a//b",
        ".a",
        "a/.b",
        "a..b",
        "a.lock",
        "a.lock/b",
        "a.",
        "a b",
        "a\tb",
        "a~1",
        "a^",
        "a:b",
        "a?",
    ),
    *("a*", "a[b", "a\\b", "a@{1}", "@", "@{-1}", "-a", "--force", "+a", "HEAD", "head", "FETCH_HEAD", "refs/heads/x"),
    *(
        "refs/x",
        "REFS/heads/x",
        "heads/x",
        "tags/v1",
        "remotes/origin/x",
        "origin/x",
        "pull/1/head",
        "a\n",
        "a\x00",
        "a\x7f",
    ),
    *(
        "a" * 251,
        "0" * 40,
        "A" * 40,
        "f" * 64,
        "caf\u00e9",
        "\uff4dain",
        "ma\u0131n",
        "a;b",
        "a|b",
        "$(a)",
        "`a`",
        "a&b",
        "'a'",
    ),
]
PROTECTED = [
    *("main", "Main", "MAIN", "master", "staging", "production", "prod", "trunk", "develop", "gh-pages", "live"),
    *("release", "release/1.2", "release-2026", "Releases", "hotfix/x"),
]


@requirement("mcp.branch-format")
def test_a_plain_name_of_no_protected_branch_passes_and_nothing_else() -> None:
    check = fits("unprotected-branch", Places())
    assert [name for name in PLAIN if not check(name)] == []
    assert [name for name in [*NOT_PLAIN, *PROTECTED] if check(name)] == []


@requirement("mcp.branch-format")
def test_which_branches_are_protected_can_be_said() -> None:
    check = fits("unprotected-branch", Places(protected=("keep", "v*")))
    assert check("main")
    assert not any(map(check, ("keep", "KEEP", "v1", "V2/x")))
    assert fits("unprotected-branch", Places(protected=()))("main")
    assert "main" in PROTECTED_BRANCHES


@requirement("mcp.branch-format")
def test_where_the_spec_names_branches_exactly_those_pass() -> None:
    check = fits("unprotected-branch", Places(branches=("handoff/report", "refs/heads/handoff/other")))
    assert check("handoff/report")
    assert check("handoff/other")
    for name in ("handoff/third", "Handoff/report", "handoff/report ", "refs/heads/handoff/other", "main", ""):
        assert not check(name)
    assert "is no plain branch" in refusal(
        {"properties": {"v": {"format": "unprotected-branch"}}}, Places(branches=("a:main",))
    )


@requirement("mcp.branch-format")
@given(name=st.text(string.printable + "\u0131\u017f\u212a", max_size=12) | st.sampled_from([*PROTECTED, *NOT_PLAIN]))
def test_no_branch_that_passes_is_protected_under_any_case_or_prefix(name: str) -> None:
    if fits("unprotected-branch", Places())(name):
        bare = name.casefold().rpartition(":")[2].lstrip("+")
        for prefix in ("refs/", "heads/", "remotes/", "origin/"):
            assert not bare.startswith(prefix)
        assert bare not in {"main", "master", "staging", "production", "head"}


# --- hosts -------------------------------------------------------------------------------------------------------

HOSTS = "url-host:api.example.com,*.cdn.example.com"


@requirement("mcp.url-host")
@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://api.example.com",
            "https://api.example.com/",
            "https://API.Example.COM/x",
            "https://api.example.com:443/x",
        ),
        *(
            "https://api.example.com?q=1",
            "https://api.example.com#top",
            "https://api.example.com/a@b:c/../d?x=https://e",
        ),
        *("https://a.cdn.example.com/x", "https://A-1.cdn.example.com", "https://api.example.com/caf\u00e9"),
    ],
)
def test_an_https_url_on_a_listed_host_passes(url: str) -> None:
    assert fits(HOSTS, Places())(url)


@requirement("mcp.url-host")
@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://api.example.com/",
            "HTTPS://api.example.com/",
            "ftp://api.example.com/",
            "//api.example.com/",
            "api.example.com",
        ),
        *(
            "https:api.example.com",
            "https:/api.example.com",
            "https:///api.example.com",
            "javascript:https://api.example.com",
        ),
        *("https://api.example.com.evil.example/", "https://evil.example/api.example.com", "https://xapi.example.com/"),
        *("https://api.example.com@evil.example/", "https://u:p@api.example.com/", "https://@api.example.com/"),
        *(
            "https://evil.example#@api.example.com/",
            "https://evil.example\\@api.example.com/",
            "https://api.example.com\\@evil/",
        ),
        *("https://api.example.com:443@evil.example/", "https://api.example.com:8443/", "https://api.example.com:/"),
        *(
            "https://api.example.com:0443/",
            "https://api.example.com./",
            "https://.api.example.com/",
            "https://api..example.com/",
        ),
        *(
            "https://api.example.com /",
            " https://api.example.com/",
            "https://api.example.com/ x",
            "https://api.example.com/\n",
        ),
        *(
            "https://api.example.com/\tx",
            "https://api\t.example.com/",
            "https://api.example.com\x00.evil/",
            "https://api%2eexample.com/",
        ),
        *(
            "https://api.example.com%2f.evil/",
            "https://api.example.com%00/",
            "https://api\u3002example.com/",
            "https://\uff41pi.example.com/",
        ),
        *(
            "https://api.example.com\uff0f.evil.example/",
            "https://api.example.com\u2028/",
            "https://\u0430pi.example.com/",
        ),
        *(
            "https://cdn.example.com/",
            "https://a.b.cdn.example.com/",
            "https://-a.cdn.example.com/",
            "https://*.cdn.example.com/",
        ),
        *("https://[::1]/", "https://127.0.0.1/", "https://", "", "https://api.example.com/a\\b"),
    ],
)
def test_a_url_that_some_reader_takes_elsewhere_is_refused(url: str) -> None:
    assert not fits(HOSTS, Places())(url)


@requirement("mcp.helper-formats")
@pytest.mark.parametrize(
    "hosts", ["", "*", "*.com", "a,", ",a", "API.example.com", "a b", "a/b", "a:443", "*.*.example.com", "b\u00fccher.example", "a..b", "-a"]
)  # fmt: skip
def test_a_list_of_hosts_that_says_too_much_or_nothing_is_refused_at_the_start(hosts: str) -> None:
    assert "format url-host:" in refusal({"properties": {"v": {"format": f"url-host:{hosts}"}}})


@requirement("mcp.url-host")
@given(text=st.text("/\\@:#?.%evil " + "\u3002\uff0f\u2025", max_size=10), at=st.integers(0, 30))
def test_no_character_put_into_a_url_moves_it_to_another_host(text: str, at: int) -> None:
    url = "https://api.example.com/path"
    mutated = url[:at] + text + url[at:]
    if fits(HOSTS, Places())(mutated):
        assert urlsplit(mutated).hostname == "api.example.com"
        assert "\\" not in mutated
        assert urlsplit(mutated).username is None


# --- where a format may stand ------------------------------------------------------------------------------------

ANY = [None, 0, 1.5, True, [], {}, ["src"], {"path": "src"}]


@requirement("mcp.helper-formats")
@pytest.mark.parametrize(
    "name", ["path-in-worktree", "path-in:/srv", "repository", "repository-owner", "unprotected-branch", HOSTS]
)
@pytest.mark.parametrize("value", ANY, ids=repr)
def test_what_is_no_text_fails_every_helper_format(name: str, value: Any, tmp_path: Path) -> None:
    assert not fits(name, Places(worktree=str(tmp_path), repository="raxx/x"))(value)


@requirement("mcp.helper-formats")
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"properties": {"v": {"items": {"format": "repository"}}}}, {"v": ["a/b", "A/B"]}, {"v": ["a/b", "a/c"]}),
        ({"properties": {"v": {"items": {"format": "repository"}}}}, {"v": []}, {"v": ["a/b", 1]}),
        ({"properties": {"v": {"prefixItems": [{"format": "repository"}]}}}, {"v": ["a/b", "x"]}, {"v": ["x"]}),
        (
            {"properties": {"v": {"properties": {"w": {"format": "repository"}}}}},
            {"v": {"w": "a/b"}},
            {"v": {"w": "a/c"}},
        ),
        ({"additionalProperties": {"format": "repository"}}, {"x": "a/b"}, {"x": "a/b", "y": "c/d"}),
        ({"patternProperties": {"^r": {"format": "repository"}}}, {"r1": "a/b", "q": 1}, {"r2": "a/c"}),
        ({"propertyNames": {"format": "unprotected-branch"}}, {"x": 1}, {"main": 1}),
        ({"allOf": [{"properties": {"v": {"format": "repository"}}}]}, {"v": "a/b"}, {"v": "a/c"}),
        ({"properties": {"v": {"anyOf": [{"format": "repository"}, {"const": 5}]}}}, {"v": 5}, {"v": 6}),
        ({"properties": {"v": {"type": ["string", "null"], "format": "repository"}}}, {"v": None}, {"v": 1}),
        (
            {"properties": {"v": {"type": "string", "format": "repository", "maxLength": 9}}},
            {"v": "a/b"},
            {"v": ["a/b"]},
        ),
    ],
)
def test_a_helper_format_holds_wherever_json_schema_applies_it(schema: Any, good: Any, bad: Any) -> None:
    made = policy(schema, Places(repository="a/b"))
    assert isinstance(made.decide("t", good), Allowed)
    assert not isinstance(made.decide("t", bad), Allowed)


@requirement("mcp.helper-formats")
@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"not": {"properties": {"v": {"format": "repository"}}}}, "under `not`"),
        ({"if": {"properties": {"v": {"format": "repository"}}}, "then": False}, "under `not`, `if`"),
        ({"properties": {"v": {"oneOf": [{"type": "string"}, {"format": "repository"}]}}}, "`oneOf`"),
        ({"properties": {"v": {"contains": {"format": "repository"}}}}, "`contains`"),
        ({"properties": {"v": {"type": "array", "format": "repository"}}}, "lets something else pass"),
        ({"properties": {"v": {"type": ["string", "array"], "format": "repository"}}}, "lets something else pass"),
        ({"properties": {"v": {"type": ["null"], "format": "repository"}}}, "lets something else pass"),
        (
            {"$defs": {"r": {"format": "repository"}}, "properties": {"v": {"$ref": "#/$defs/r"}}},
            "write it out in place",
        ),
        ({"properties": {"v": {"format": "path-in-worktre"}}}, "Unknown format"),
        ({"properties": {"v": {"format": "path-in-worktree:"}}}, "Unknown format"),
        ({"properties": {"v": {"format": "path-in"}}}, "Unknown format"),
        ({"properties": {"v": {"format": "repository:a/b"}}}, "Unknown format"),
        ({"properties": {"v": {"format": "Repository"}}}, "Unknown format"),
        ({"properties": {"v": {"format": 7}}}, "cannot be used"),
    ],
)
def test_a_helper_format_where_failing_it_could_let_arguments_through_is_refused(schema: Any, why: str) -> None:
    assert why in refusal(schema, Places(repository="a/b"))


@requirement("mcp.helper-formats")
@pytest.mark.parametrize(
    ("name", "places", "why"),
    [
        ("path-in-worktree", Places(), "has no worktree"),
        ("path-in-worktree", Places(worktree="relative"), "is not an absolute path"),
        ("repository", Places(), "has no GitHub repository"),
        ("repository-owner", Places(), "has no GitHub repository"),
        ("repository-name", Places(repository="just-a-name"), "is not owner/name"),
    ],
)
def test_a_format_that_needs_a_place_which_is_not_there_refuses_the_start(name: str, places: Places, why: str) -> None:
    assert why in refusal({"properties": {"v": {"format": name}}}, places)


@requirement("mcp.helper-formats")
def test_the_formats_of_json_schema_go_on_working_beside_them() -> None:
    made = policy({"properties": {"u": {"format": "uri"}, "r": {"format": "repository"}}}, Places(repository="a/b"))
    assert isinstance(made.decide("t", {"u": "https://x.example", "r": "a/b"}), Allowed)
    assert not isinstance(made.decide("t", {"u": "no uri", "r": "a/b"}), Allowed)


@requirement("mcp.helper-formats")
def test_the_grants_schema_itself_is_left_as_it_was() -> None:
    schema = {"properties": {"r": {"format": "repository"}}}
    policy(schema, Places(repository="a/b"))
    assert schema == {"properties": {"r": {"format": "repository"}}}
