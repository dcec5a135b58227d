"""Names: formatted and read back without loss, and closed to everything that looks like one."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent_token_injector.names import (
    HandoffId,
    IdentityName,
    Layout,
    SecretGlob,
    TaskSlug,
    VaultPath,
    check_env_name,
    check_secret_name,
)
from tests.requirements import requirement
from tests.strategies import handoff_ids, identity_names

NOT_SLUGS = (
    *(
        "",
        "-",
        "a-",
        "-a",
        "a--b",
        "A",
        "Founders-checkout",
        "a_b",
        "a.b",
        "a b",
        " a",
        "a ",
        "a\n",
        "a\x00",
        "a/b",
        "..",
    ),
    *(
        "%61",
        "a%2db",
        "fo\u00fcnders",
        "\u0430bc",
        "\uff41bc",
        "a\u2010b",
        "a\u2011b",
        "a\u00adb",
        "a\u200bb",
        "a\u202eb",
    ),
    *("\u0661", "\u2460", "\u212a", "a" * 41, "*", "a,b"),
)
NOT_PATHS = (
    *(
        "",
        "MooseQuest",
        "MooseQuest/",
        "//",
        "/MooseQuest/",
        "//MooseQuest",
        "/MooseQuest//queue",
        "/MooseQuest/../velvet",
    ),
    *("/..", "/.", "/MooseQuest/./queue", "/MooseQuest/...", "/Moose Quest", "/MooseQuest\n", "\n/MooseQuest", "/a\\b"),
    *("/MooseQuest/%2e%2e/velvet", "/MooseQuest%2Fvelvet", "/MooseQuest/%2E", "/a%00", "/a\x00", "/a:b", "/a*", "/a?b"),
    *(
        "/MooseQuest\uff0fvelvet",
        "/\u041c\u043e\u043e\u0455\u0435Quest",
        "/MooseQuest/\uff0e\uff0e",
        "/MooseQuest/\u2025",
    ),
    *("/MooseQuest\u200b", "/\u202eMooseQuest", "/" + "a" * 101, "/MooseQuest\u2215velvet", "~/x", "/~"),
)
NOT_PATTERNS = (
    *(
        "**",
        "A**",
        "*A",
        "A*B",
        "?",
        "A?",
        "a",
        "stripe_*",
        "A-B",
        "A.B",
        "A*\n",
        "A\n",
        "[A]",
        "{A,B}",
        "\uff21",
        "\u0410",
    ),
    *("A%2a", "\uff0a", "A\u200b", " A", "A B", "A" * 101),
)


@requirement("names.round-trip")
@given(handoff_ids)
def test_a_handoff_id_reads_back_as_itself(handoff: HandoffId) -> None:
    assert HandoffId.parse(str(handoff)) == handoff
    assert len(str(handoff)) == len(str(handoff.slug)) + 9


@requirement("names.round-trip", "H2.canonical-name")
@given(identity_names)
def test_an_identity_name_reads_back_as_itself_even_when_the_slug_says_handoff(identity: IdentityName) -> None:
    assert IdentityName.parse(str(identity)) == identity


@requirement("H2.canonical-name")
def test_the_names_are_the_adrs_own() -> None:
    handoff = HandoffId(TaskSlug("iap-notif-handler"), date(2026, 6, 20))
    assert str(IdentityName("infisical", handoff)) == "infisical-handoff-iap-notif-handler-20260620"
    assert str(Layout().of(handoff)) == "/MooseQuest/handoffs/iap-notif-handler-20260620"
    assert str(Layout().own_glob(handoff)) == "/MooseQuest/handoffs/iap-notif-handler-20260620/*"
    assert str(Layout().supplied_for(handoff.slug)) == "/MooseQuest/supplied/iap-notif-handler"


@requirement("names.shortened")
@given(identity_names, st.sampled_from([32, 64]))
def test_a_shortened_name_fits_and_is_always_the_same(identity: IdentityName, limit: int) -> None:
    short = identity.shortened(limit)
    assert len(short) <= limit
    assert short == IdentityName.parse(str(identity)).shortened(limit)
    assert (short == str(identity)) == (len(str(identity)) <= limit)
    assert "--" not in short


@requirement("names.shortened", "H2.canonical-name")
@settings(max_examples=200)
@given(identity_names, identity_names, st.sampled_from([32, 64]))
def test_two_handoffs_never_share_a_shortened_name(one: IdentityName, other: IdentityName, limit: int) -> None:
    assume(one != other)
    assert one.shortened(limit) != other.shortened(limit)


@requirement("names.shortened")
def test_names_that_differ_only_after_the_cut_stay_apart() -> None:
    slug = TaskSlug("a" * 40)
    names = {
        IdentityName("stripe-restricted", HandoffId(slug, date(2026, 6, day))).shortened(64) for day in range(1, 31)
    }
    assert len(names) == 30
    assert {len(name) for name in names} == {64}


@requirement("spec.closed-names")
@pytest.mark.parametrize("text", NOT_SLUGS)
def test_what_is_not_a_slug_is_refused_not_mended(text: str) -> None:
    with pytest.raises(ValueError):
        TaskSlug(text)


@requirement("spec.closed-names")
@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "20260620", "a-2026062", "a-20260231", "a-20261301", "a-00000101", "a-20260620\n", "A-20260620"),
        *("a--20260620", "a-2026\uff106\u06620", "a-\u0662\u0660260620", "a-20260620 ", "a_20260620", "../a-20260620"),
        "a" * 41 + "-20260620",
    ],
)
def test_what_is_not_a_handoff_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        HandoffId.parse(text)


@requirement("spec.closed-names")
@pytest.mark.parametrize(
    "text",
    [
        *("", "infisical", "infisical-handoff-20260620", "-handoff-a-20260620", "infisical-hand0ff-a-20260620"),
        *("Infisical-handoff-a-20260620", "infisical-handoff-a-20260620\n", "x infisical-handoff-a-20260620"),
        *(
            "infisical-handoff-a-20260231",
            "inf\u0456sical-handoff-a-20260620",
            "raxx-dev-bot",
            "infisical_handoff_a_20260620",
        ),
    ],
)
def test_a_strangers_identity_is_not_taken_for_ours(text: str) -> None:
    with pytest.raises(ValueError):
        IdentityName.parse(text)


@requirement("H1.closed-paths")
@pytest.mark.parametrize("text", NOT_PATHS)
def test_a_path_that_some_vault_could_read_differently_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        VaultPath(text)


@requirement("H1.closed-paths")
@pytest.mark.parametrize("text", ["/", "/A", "/MooseQuest/queue/staging", "/a-b/c_D/9"])
def test_a_path_has_one_spelling(text: str) -> None:
    path = VaultPath(text)
    assert str(path) == text
    assert VaultPath("/" + "/".join(path.segments)) == path


@requirement("H1.closed-paths")
def test_being_within_goes_by_whole_segments() -> None:
    x = VaultPath("/x")
    assert x.is_within(x)
    assert VaultPath("/x/y/z").is_within(x)
    assert x.is_within(VaultPath("/"))
    assert not VaultPath("/x-2").is_within(x)
    assert not VaultPath("/X").is_within(x)
    assert not VaultPath("/").is_within(x)
    assert not VaultPath("/y/x").is_within(x)


@requirement("H1.closed-paths")
def test_parent_and_child_undo_each_other() -> None:
    path = VaultPath("/a/b")
    assert path.child("c").parent == path
    assert VaultPath("/").child("a") == VaultPath("/a")
    assert VaultPath("/a").parent == VaultPath("/").parent == VaultPath("/")
    for bad in ("..", "", "a/b", "%2e"):
        with pytest.raises(ValueError):
            path.child(bad)


@requirement("H1.closed-paths")
@pytest.mark.parametrize(
    "text", [*(f"/A/{pattern}" for pattern in NOT_PATTERNS), "/A/", "A", "", "KEY_*", "/a//B", "/../B"]
)
def test_a_glob_that_is_not_one_folder_and_one_prefix_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        SecretGlob.parse(text)


@requirement("H1.closed-paths")
@pytest.mark.parametrize("text", ["/KEY", "/*", "/A/KEY_*", "/MooseQuest/queue/staging/STRIPE_*", "/A/9*"])
def test_a_glob_reads_back_as_itself(text: str) -> None:
    assert str(SecretGlob.parse(text)) == text


@requirement("H1.glob-one-folder")
@pytest.mark.parametrize(
    ("glob", "folder", "name", "covered"),
    [
        ("/x/*", "/x", "KEY", True),
        ("/x/*", "/x-2", "KEY", False),
        ("/x/*", "/x/y", "KEY", False),
        ("/x/*", "/", "KEY", False),
        ("/x/*", "/X", "KEY", False),
        ("/*", "/", "KEY", True),
        ("/*", "/x", "KEY", False),
        ("/x/KEY", "/x", "KEY", True),
        ("/x/KEY", "/x", "KEY_2", False),
        ("/x/KEY", "/x", "KE", False),
        ("/x/KEY", "/x", "key", False),
        ("/x/KEY*", "/x", "KEY", True),
        ("/x/KEY*", "/x", "KEY_2", True),
        ("/x/KEY_*", "/x", "KEY", False),
        ("/x/KEY_*", "/x", "MY_KEY_1", False),
    ],
)
def test_a_glob_covers_one_folder_and_no_other(glob: str, folder: str, name: str, covered: bool) -> None:
    assert SecretGlob.parse(glob).matches(VaultPath(folder), name) is covered


@requirement("spec.closed-names")
@pytest.mark.parametrize("name", ["", "a", "1A", "_A", "A-B", "A\n", "\uff21", "A" * 101, "A.B"])
def test_what_is_not_a_secret_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        check_secret_name(name)


@requirement("spec.closed-names")
@pytest.mark.parametrize("name", ["", "1A", "A=B", "A-B", "A\n", "A\x00", "\uff21", "A B", "A" * 101, "BASH_FUNC_x%%"])
def test_what_is_not_an_environment_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        check_env_name(name)


@requirement("spec.closed-names")
def test_good_names_are_handed_back() -> None:
    assert check_secret_name("GH_HANDOFF_TOKEN") == "GH_HANDOFF_TOKEN"
    assert check_env_name("_lower9") == "_lower9"
