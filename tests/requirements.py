"""What must be true, as data: `id -> (source, what)`.

Tests carry `@requirement("H3.lifetime")`. tests/test_requirements.py fails on a requirement without a test, and
tests/conftest.py on a tag without a requirement. H and ADR are the record (ADR-0131), D the design's decisions, facts the
measured behaviour of vendors and protocols, issue the text that asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

import pytest

F = TypeVar("F", bound=Callable[..., object])


class Requirement(NamedTuple):
    """Where it comes from, and what must be true."""

    source: str
    text: str


REQUIREMENTS: Final[Mapping[str, Requirement]] = MappingProxyType(
    {
        "H1.actions-secrets": Requirement("ADR §3.1, §5.1", "Actions secrets are refused under every name."),
        "H1.app-ceiling": Requirement("ADR §7", "An App with excess permissions stops the provisioning."),
        "H1.aws-action": Requirement("ADR §3.1", "An AWS action that the policy does not allow is refused."),
        "H1.aws-resource": Requirement("ADR §3.1", "Anything but an ARN of the service in the account is refused."),
        "H1.aws-wildcard": Requirement("ADR §3.1", "AWS wildcards are refused."),
        "H1.closed-paths": Requirement(
            "H1", "A vault path has one spelling; dotted, doubled, encoded and look-alike ones are refused."
        ),
        "H1.cloudflare-permission": Requirement(
            "ADR §3.1", "Zone settings, bot management and account scopes are refused."
        ),
        "H1.cloudflare-zone": Requirement("ADR §3.1", "Anything but exactly one zone is refused."),
        "H1.env-admin": Requirement(
            "ADR §6.2", "Admin names and minted credentials' names are refused in the environment."
        ),
        "H1.github-administration": Requirement("ADR §5.1", "GitHub administration is refused."),
        "H1.github-all-repositories": Requirement("ADR §3.1", "All repositories is refused."),
        "H1.github-level": Requirement("ADR §5.1", "A permission above the level a handoff gets is refused."),
        "H1.github-no-permissions": Requirement(
            "facts/surfaces §2.1", "No permissions asked for, which GitHub takes as all, is refused."
        ),
        "H1.github-organization": Requirement("ADR §7", "Organisation permissions are refused."),
        "H1.github-permission": Requirement(
            "ADR §5.1", "Permissions beyond contents, pull requests and issues are refused."
        ),
        "H1.github-protected-push": Requirement(
            "ADR §5.1", "A push to a protected branch is refused, however it is written."
        ),
        "H1.github-repository": Requirement("ADR §5.2", "Anything but exactly one repository is refused."),
        "H1.github-workflows": Requirement("ADR §5.1", "Workflows are refused."),
        "H1.glob-one-folder": Requirement("H1", "A read grant covers one folder and not those below or beside it."),
        "H1.heroku-app": Requirement("ADR §3.1", "Anything but exactly one app is refused."),
        "H1.heroku-one-purpose": Requirement("ADR §3.1", "A key for config vars and deploys at once is refused."),
        "H1.heroku-permission": Requirement("ADR §3.1", "Scale, billing, add-ons and collaborators are refused."),
        "H1.least-privilege": Requirement("H1", "What is minted is what was asked for, and no more."),
        "H1.own-identity": Requirement("H1", "A handoff's identity is its own, minted for it."),
        "H1.policy-loosened": Requirement("issue 2", "A policy made looser than the ADR is refused."),
        "H1.protection-bypass": Requirement(
            "ADR §3.1", "Bypassing or changing branch protection is refused under every name."
        ),
        "H1.stripe-no-permissions": Requirement("ADR §3.1", "A Stripe key without named permissions is refused."),
        "H1.surface": Requirement("ADR §3.1", "A surface that the operator's policy leaves out is refused."),
        "H1.vault-foreign-handoff": Requirement("ADR §4.3", "A read in another handoff's path is refused."),
        "H1.vault-glob": Requirement("ADR §3.1", "A read outside the handoff's own path and staging is refused."),
        "H1.vault-glob-wide": Requirement("ADR §6.2", "A read of a whole staging folder is noted."),
        "H2.canonical-name": Requirement(
            "H2, ADR §4.2", "Identities follow the canonical name, so that they can be found without searching."
        ),
        "H2.exec-revokes": Requirement("H2", "A scheduled job's handoff is revoked, whatever its end."),
        "H2.independent": Requirement("H2", "Ending one handoff changes nothing for another."),
        "H2.kill-at-once": Requirement(
            "H2", "Deleting a vault identity ends its tokens and its client secret at once."
        ),
        "H2.revoke-removes-secrets": Requirement("H2", "Deleted folders and secrets are gone."),
        "H2.revoked-by-a-person": Requirement("ADR §4.6", "A credential that only a person can end is noted."),
        "H3.end-unattended": Requirement("ADR §6.2", "Over an hour with nobody to end it is refused."),
        "H3.ends-at-expiry": Requirement("H3", "The agent ends at its deadline, even when its parent does nothing."),
        "H3.expiry": Requirement("H3", "An agent ends with its handoff's time."),
        "H3.lifetime": Requirement("ADR §6.1", "More than 24 hours is refused."),
        "H3.lifetime-positive": Requirement("H3", "A lifetime of nothing is refused."),
        "H3.no-existence-oracle": Requirement("H3", "Outside its globs, absent and existing secrets look alike."),
        "H3.no-second-life": Requirement("H3", "An expired handoff does not live again."),
        "H3.no-start-after-expiry": Requirement("H3", "Nothing starts when its time is nearly over."),
        "H3.runtime": Requirement("ADR §6.1", "A runtime longer than the lifetime is refused."),
        "H3.scope": Requirement("H3", "A session reads exactly its globs."),
        "H3.shortest-credential": Requirement("H3", "A handoff lives no longer than its shortest credential."),
        "H3.surface-lifetime": Requirement("ADR §3.1", "More than a surface's own ceiling is refused."),
        "H3.token-not-past-identity": Requirement("H3", "A token never outlives its identity."),
        "H3.token-ttl": Requirement(
            "H3, ADR §3.1", "Access tokens live at most 15 minutes; installation tokens at most an hour."
        ),
        "H3.velvet-unavailable": Requirement("ADR §4.4", "Relying on Velvet where it cannot enrol is refused."),
        "H4.before-anything": Requirement("H4", "What can be known before a mint stops it before."),
        "H4.gate-first": Requirement("H4", "A refused spec touches nobody."),
        "H4.manifest": Requirement("H4", "Provisioning ends in a signed manifest that says what was given."),
        "H4.no-manifest-no-spawn": Requirement("H4", "Without a usable manifest nothing is launched."),
        "H5.audit": Requirement("ADR §6.2", "An audit retention below 90 days is refused."),
        "H5.card": Requirement("ADR §6.2", "A spec without a card is refused."),
        "H5.event-before-disclosure": Requirement("H5", "No event, no value."),
        "H5.fail-closed": Requirement("H5", "What cannot be audited is not done."),
        "H5.no-audit-no-action": Requirement("H5", "What cannot be audited is not done, at any point."),
        "H5.one-event-per-access": Requirement(
            "H5", "Each access to a tool leaves an event with the task slug and no values."
        ),
        "H5.operator": Requirement("ADR §6.2", "A spec without an operator is refused."),
        "H5.provision-audited": Requirement("H5", "Every step of provisioning is on record."),
        "H5.revocation-audited": Requirement("H5", "Every step of a revocation is on record."),
        "H5.spawn-audited": Requirement("H5", "Every dispatch and refusal is on record."),
        "H5.tamper-evident": Requirement("H5", "Any alteration of the trail is found at its event."),
        "H5.vault-access": Requirement(
            "H5", "Logins and reads, allowed and refused, leave events that outlive the identity."
        ),
        "H5.who-what-when": Requirement("H5", "An event says who, what, when and under which handoff."),
        "H6.env-credential": Requirement("H6", "A plain value under a credential's name is refused."),
        "H6.key-hidden": Requirement("H6", "A signing key shows its id and nothing else."),
        "H6.no-core-dump": Requirement("H6", "An agent leaves no core dump."),
        "H6.no-secret-in-argv": Requirement("H6", "A command that holds a secret is refused."),
        "H6.no-secret-in-proc": Requirement("H6", "No secret in a command line, or in the supervisor's environment."),
        "H6.no-secret-shown": Requirement("H6", "No surface shows a secret in a repr, an exception or a log."),
        "H6.no-values": Requirement("H6", "No event and no output holds a secret, in any common encoding."),
        "H6.secret-in-spec": Requirement("H6", "A text that looks like a credential is refused, wherever it stands."),
        "H6.values-not-quoted": Requirement("H6", "An error about a spec quotes no value that may be a secret."),
        "H7.alpaca-live": Requirement("H7", "Alpaca live without a valid approval is refused."),
        "H7.alpaca-paper-gate": Requirement("ADR §12", "Alpaca live without the paper gate's evidence is refused."),
        "H7.apple-designated-task": Requirement("ADR §3.1", "Apple production for another task is refused."),
        "H7.apple-iap-production": Requirement("H7", "Apple production without a valid approval is refused."),
        "H7.approve": Requirement("H7", "Only a listed operator's signature over this very spec opens a live surface."),
        "H7.live-approved": Requirement("H7", "A live key passes only where the spec says live."),
        "H7.operators": Requirement("H7", "Operators come from the configuration only."),
        "H7.stripe-live": Requirement("H7", "Stripe live without a valid approval is refused."),
        "H7.stripe-permission": Requirement(
            "ADR §8.2", "Stripe permissions that move money, write customers or make credentials are refused."
        ),
        "H7.test-by-default": Requirement("H7", "The test mode is the default of every financial surface."),
        "H8.kill-switch": Requirement("H8", "Every surface can be ended on its own, and is seen dead."),
        "H8.measured-kill": Requirement("H8", "An end reports its milliseconds and its survivors."),
        "H8.operator-supplied": Requirement(
            "H8", "A credential that only a person can end is told as alive until it was seen dead."
        ),
        "D1.one-store": Requirement(
            "D1", "What one handle writes to the vault, another reads at once, from any process."
        ),
        "D2.commit-point": Requirement("D2", "Nothing starts before the manifest is there, nor after an undo."),
        "D2.crash-points": Requirement(
            "D2", "A provisioner killed at any point leaves nothing alive after the next revoke or provision."
        ),
        "D2.create-only": Requirement(
            "D2", "Of concurrent creators of one name exactly one wins, and nothing is overwritten."
        ),
        "D2.deadline": Requirement("D2", "A provisioner gives up sooner than its deadline."),
        "D2.debris": Requirement("D2", "What a dead provisioner left is cleared before anything is minted anew."),
        "D2.deterministic-names": Requirement("D2", "The intent names exactly what will be minted."),
        "D2.holder": Requirement("D2", "A provisioner is known by boot, pid and start time."),
        "D2.intent-first": Requirement("D2", "Every identity is named in the vault before the first is minted."),
        "D2.leftover-identity": Requirement("D2", "An identity that is left over is never taken over."),
        "D2.mark": Requirement("D2", "A mark stops a provisioner that is under way."),
        "D2.states": Requirement("D2", "The records in a path tell its state."),
        "D2.successor": Requirement("D2", "Who slept through the end of a handoff leaves its successor alone."),
        "D3.ambiguous": Requirement("D3", "A mint without a usable answer is told as ambiguous, and is never retried."),
        "D3.begin": Requirement("D3", "The record that a mint began is written right before the request that creates."),
        "D3.bounded": Requirement("D3", "What is not known has an end time."),
        "D3.idempotent-only": Requirement("D3", "Only what is idempotent is tried again."),
        "D3.keeper": Requirement(
            "D3", "A credential that only its holder can revoke survives no provisioner that was killed."
        ),
        "D3.kill-safe": Requirement("D3", "A keeper ends what its provisioner did not record."),
        "D3.kinds": Requirement("D3", "Each kind of credential ends as its kind can."),
        "D3.lost-value": Requirement("D3", "A lost or exchanged value proves nothing."),
        "D3.minted": Requirement("D3", "A mint that succeeds gives a lease and its values."),
        "D3.never-retried": Requirement("D3", "A mint that is not known is never asked for again."),
        "D3.proof": Requirement("D3", "A revocation counts when the credential was seen dead."),
        "D3.reconciled": Requirement("D3", "An ambiguous mint is looked up by name."),
        "D3.refused": Requirement("D3", "A refused mint leaves nothing."),
        "D3.seen-dead": Requirement("D3", "Every credential is seen dead before its path goes."),
        "D3.stale-record": Requirement("D3", "A record of an earlier mint is not taken for the present one."),
        "D3.three-outcomes": Requirement("D3", "A mint is made, refused, or not known."),
        "D4.all-or-nothing": Requirement(
            "D4", "Any failure undoes what was minted, and the residue is listed exactly."
        ),
        "D4.at-once": Requirement("D4", "Two at once make one handoff."),
        "D4.ctrl-c": Requirement("D4", "An interrupted provisioning is undone."),
        "D4.interrupted": Requirement("D4", "A signal that ends a command undoes what it began."),
        "D4.provision-twice": Requirement("D4", "Provisioning twice mints once."),
        "D4.residue-exact": Requirement("D4", "The residue is exactly what is alive."),
        "D5.read-back": Requirement("D5", "After a mint the effective scope and expiry are read from the surface."),
        "D5.wider-refused": Requirement("D5", "A credential that can do more than was asked is revoked and refused."),
        "D6.bound": Requirement("D6", "The manifest is bound to spec, policy, names, secrets and audit."),
        "D6.canonical": Requirement("D6, RFC 8785", "One document has one canonical form and one digest."),
        "D6.fail-closed": Requirement("D6", "A vault that cannot be read starts nothing."),
        "D6.public-key-only": Requirement("D6", "A host that dispatches needs the public key only."),
        "D6.secret-digest": Requirement("D6", "A secret is compared by a salted digest that tells nothing of it."),
        "D6.secrets": Requirement("D6", "A secret too few, too many or different stops the dispatch."),
        "D6.signature": Requirement("D6", "A signature fits one document and one key."),
        "D6.tampered": Requirement("D6", "A manifest that was altered anywhere is refused."),
        "D6.trust": Requirement("D6", "A manifest of a key that is not trusted is refused."),
        "D6.type-tag": Requirement("D6", "A signature for one kind of document says nothing about another."),
        "D6.unreachable-vault": Requirement("D6", "A vault that cannot be asked stops the dispatch."),
        "D7.argv": Requirement("D7", "A credential typed into a command line is not taken, and not shown."),
        "D7.base-is-ours": Requirement("D7", "A context cannot set a name of the base."),
        "D7.env-from-nothing": Requirement(
            "D7", "The agent's environment is a constant base and its own block, whatever the parent's holds."
        ),
        "D7.env-loader": Requirement("D7", "Names that change how programs start are refused."),
        "D7.fresh-home": Requirement("D7", "HOME and TMPDIR are new, 0700, and gone afterwards."),
        "D7.mcp-config": Requirement(
            "D7, design §5", "HANDOFF_MCP_CONFIG names a file that refers to the token and does not hold it."
        ),
        "D7.no-secret-in-argv": Requirement("D7", "No secret is in a command line."),
        "D7.no-secret-shown": Requirement("D7", "No secret in a repr, an error or an event of the vault."),
        "D7.secrets-not-in-repr": Requirement("D7", "No secret in a repr or argv of the MCP proxy."),
        "D7.server-env-from-nothing": Requirement(
            "D7", "An MCP server's environment is exactly what was granted to it."
        ),
        "D7.session-context": Requirement("ADR §4.5", "The session context has the ADR's shape."),
        "D8.audit-before-forward": Requirement("D8", "What cannot be recorded is not forwarded."),
        "D8.bearer": Requirement("D8", "The bearer is of this handoff alone and dies with it."),
        "D8.canonical-bytes": Requirement("D8", "Only the proxy's own bytes go on."),
        "D8.cut-off": Requirement("D8", "A cut-off is at once and final."),
        "D8.deny-methods": Requirement("D8", "A method that is not served is refused."),
        "D8.minted-ids": Requirement("D8", "Ids upstream are the proxy's own; a duplicate in flight is refused."),
        "D8.nothing-else-reaches": Requirement("D8", "No mutation of a message reaches a tool that was not granted."),
        "D8.recheck": Requirement("D8", "The proxy refuses as soon as the handoff ended."),
        "D8.recheck-standing": Requirement("D8", "Expiry and revocation are checked for every call, and in flight."),
        "D8.strict-parse": Requirement("D8", "A message has one strict reading or none."),
        "D9.one-allowlist": Requirement(
            "D9", "What the client is told, what the proxy allows and what the spec grants are one list."
        ),
        "D10.at-once": Requirement("D10", "Two revocations at once are safe."),
        "D10.audit-never-blocks": Requirement("D10", "A revocation waits for no lock, disk or directory."),
        "D10.audit-never-waits": Requirement("D10", "A revocation happens though nothing can be audited, and says so."),
        "D10.expiry-counts": Requirement("D10", "A credential past its own expiry counts as ended."),
        "D10.idempotent": Requirement("D10", "Revoking twice, or what never was, is safe."),
        "D10.mark-first": Requirement("D10", "The mark comes before everything else."),
        "D10.never-waits": Requirement("D10", "A revocation waits for nothing that is not part of it."),
        "D10.parallel": Requirement("D10", "Surfaces are ended side by side; one that hangs holds up no other."),
        "D10.path-last": Requirement("D10", "The path goes last, and only when nothing needs it."),
        "D10.reader-gone": Requirement("D10", "A revocation finishes though nobody reads its output."),
        "D11.layers": Requirement("D11", "Imports go down only, and the pure core does no input or output."),
        "approval.altered": Requirement("H7", "An approval that was altered in any field is refused."),
        "approval.expiry": Requirement("H7", "An approval ends, and one dated in the future is refused."),
        "approval.file": Requirement("H7", "An approvals file that is something else is refused with a clear error."),
        "approval.listed-operator": Requirement("H7", "Only operators that the configuration lists can approve."),
        "approval.max-age": Requirement("H7", "An approval given for too long does not count."),
        "approval.signed": Requirement("H7", "An approval verifies with the operator's key and no other."),
        "approval.spec-digest": Requirement("H7", "A spec edited after approval is refused."),
        "approval.surface-mode": Requirement(
            "H7", "An approval is for one surface in one mode that the spec asks for."
        ),
        "approval.type-tag": Requirement("H7", "Another kind of signature is no approval."),
        "audit.template": Requirement(
            "issue 3", "A row that is spelled once and filled in is the row that would have been spelled each time."
        ),
        "audit.batch": Requirement("issue 3", "A batch is one write at one time; what fails is not relied on."),
        "audit.bounded": Requirement("D8", "An agent cannot flood a line."),
        "audit.chain": Requirement(
            "H5", "Lines are canonical and their digests can be recomputed; a handoff has one chain."
        ),
        "audit.checkpoint": Requirement("D6", "A recorded head shows truncation and rewriting."),
        "audit.disk-full": Requirement("facts/anchors F10", "A full disk is told, and no half line is left."),
        "audit.durable": Requirement("H5", "Urgent events and heads are on disk on return; an fsync error is kept."),
        "audit.fail-closed": Requirement("H5", "A chain that is not as it was left is not written."),
        "audit.group": Requirement("H5", "Other events reach the disk by themselves within the window."),
        "audit.light": Requirement("design §4", "Importing the audit log loads nothing heavy."),
        "audit.many": Requirement("H5", "Many handoffs keep few files open."),
        "audit.masked": Requirement("H6", "Every text of an event passes the redactor."),
        "audit.no-hang": Requirement(
            "facts/anchors F10", "A lock that is held is waited for no longer than the deadline."
        ),
        "audit.private": Requirement("D7", "The trail is 0600 in a 0700 directory."),
        "audit.processes": Requirement("D1", "Several writers make one valid chain."),
        "audit.spelling": Requirement(
            "RFC 8785", "However quickly a line is spelled, it is spelled as RFC 8785 has it."
        ),
        "audit.spool": Requirement("D10", "Spooled events are written in order, dated, and never lost in silence."),
        "audit.stalled": Requirement("issue 3", "A disk that hangs is told to whoever does not wait for it."),
        "audit.strict": Requirement("H5", "A line is read by exact types, with no member more or less."),
        "audit.torn": Requirement("facts/anchors F10", "A killed writer's half line is kept and told of."),
        "cli.adr-command": Requirement("ADR §6.3, §9", "The ADR's own command provisions and revokes."),
        "cli.approve": Requirement("issue 2", "approve signs for this very spec."),
        "cli.audit": Requirement("issue 2", "audit shows and verifies a trail."),
        "cli.check": Requirement("ADR §6.2", "check prints the checklist with its marks."),
        "cli.exec": Requirement("issue 2", "exec provisions, runs and revokes."),
        "cli.exit-codes": Requirement("design §5", "Each exit code has a real situation."),
        "cli.exit-passed-through": Requirement("design §5", "The agent's own exit code comes through."),
        "cli.help": Requirement("issue 2", "Help is there for every command."),
        "cli.init": Requirement("issue 2", "init writes a spec that passes the gate."),
        "cli.json": Requirement("design §5", "--json prints one document, errors too."),
        "cli.list": Requirement("issue 2", "list shows every handoff."),
        "cli.mistakes": Requirement("issue 2", "A mistake is told in words with a next step, without a traceback."),
        "cli.provision": Requirement("issue 2", "provision prints the id."),
        "cli.revoke": Requirement("issue 2", "revoke tells of each surface."),
        "cli.show": Requirement("issue 2", "show tells what a handoff was given."),
        "cli.signals": Requirement("design §5", "Signals are passed on, or undo."),
        "cli.stdin-passed-through": Requirement("design §5", "The agent has the command's standard input."),
        "cli.supply": Requirement("issue 2", "supply stores a credential that never stands in argv."),
        "clock.human": Requirement("design §4", "Spans read well for people."),
        "clock.iso": Requirement("design §4", "Times have one form, in UTC."),
        "clock.manual": Requirement("D11", "A manual clock moves when it is moved, forward only."),
        "clock.system": Requirement("D11", "The system clock tells aware UTC time."),
        "corpus.arguments": Requirement("facts/mcp §2.23", "What stands in arguments is data."),
        "corpus.capabilities": Requirement(
            "facts/mcp §2.21", "A server is told of no client capability that was not granted."
        ),
        "corpus.collisions": Requirement(
            "facts/mcp §2.25", "Tools of one name on two servers are told apart, or not granted."
        ),
        "corpus.complete": Requirement("issue 3", "Each of the 30 known ways round has a file or a test."),
        "corpus.event-ids": Requirement(
            "facts/mcp §2.16", "A stream is gone on with from events that its own session was handed."
        ),
        "corpus.framing": Requirement("facts/mcp §2.1", "A message is one line for every reader, or none."),
        "corpus.log-lines": Requirement("facts/mcp §2.30", "Nothing that an agent sends ends a line of the audit."),
        "corpus.meta": Requirement(
            "facts/mcp §2.22", "Of `_meta` a server sees what the proxy knows, and nothing else."
        ),
        "corpus.own-headers": Requirement(
            "facts/mcp §2.28", "No header and no credential of the agent reaches a server."
        ),
        "corpus.refused": Requirement("issue 3", "Every way round of the corpus ends as its file says."),
        "corpus.sdk-lines": Requirement("issue 3", "The corpus ends alike before servers on every line of the SDKs."),
        "corpus.servers": Requirement("facts/mcp §2", "What a hostile server says goes no further than its file says."),
        "corpus.tasks": Requirement("facts/mcp §2.19", "No task begins that was not granted, and none is told of."),
        "demo.no-trace": Requirement("issue 2", "The demo leaves no process, file or HOME entry, interrupted too."),
        "demo.shows": Requirement("issue 2", "The demo shows every scene of a handoff's life."),
        "demo.spec": Requirement("issue 2", "The demo takes a spec of one's own, or refuses it clearly."),
        "demo.terminal": Requirement("issue 2", "The demo fits 80 and 120 columns."),
        "docs.exit-codes": Requirement("design §5", "The table of exit codes is the code's."),
        "docs.files-named": Requirement("issue 2", "Files that the docs name are there."),
        "docs.layers": Requirement("design §4", "The layers in the docs are the contract's."),
        "docs.links": Requirement("issue 2", "Links lead somewhere."),
        "docs.modules": Requirement("issue 2", "Every module is named in the architecture."),
        "docs.no-machine": Requirement("issue 2", "No path of a machine stands anywhere."),
        "docs.orchestrator": Requirement("issue 2", "The orchestrator's example runs."),
        "docs.readme-commands": Requirement("issue 2", "The README's commands run."),
        "docs.readme-python": Requirement("issue 2", "The README's code runs."),
        "docs.scheduled-job": Requirement("issue 2", "The scheduled job's example runs."),
        "docs.spec-examples": Requirement("issue 2", "The example specs pass the gate."),
        "docs.variables": Requirement("issue 2", "The README's variables are the code's."),
        "face.docstrings": Requirement("design §5", "Every public name says what it promises."),
        "face.errors": Requirement("design §5", "The error tree is as it is drawn, with codes of its own."),
        "face.light-import": Requirement("issue 2", "Importing the package, and its help, load nothing heavy."),
        "face.names": Requirement("design §5", "The public names are sorted, complete and resolvable."),
        "face.ships": Requirement("issue 2", "The package ships its types and the demo's spec."),
        "fuzz.http": Requirement("issue 3", "Mutated messages over HTTP do nothing that was not granted."),
        "fuzz.parse": Requirement("issue 3", "What the strict reading accepts means the same to every reader."),
        "fuzz.stdio": Requirement(
            "issue 3", "Mutated messages over stdio, split anywhere, do nothing that was not granted."
        ),
        "gate.approvals": Requirement("H7", "The report carries the approvals that were needed and are valid."),
        "gate.bound": Requirement("D6", "The report names the spec and the policy that it judged."),
        "gate.checklist": Requirement(
            "ADR §6.2", "Every box of the checklist is there, in its order, and every refusal shows in one."
        ),
        "gate.codes": Requirement("issue 2", "Every finding's code is exercised by a test."),
        "gate.examples": Requirement("ADR §8", "Both of the ADR's candidates pass the gate."),
        "gate.good-spec": Requirement("issue 2", "A good spec passes without a refusal."),
        "gate.innocent-names": Requirement("D7", "Names and texts that only resemble a secret's or a loader's pass."),
        "gate.linear": Requirement("H4", "No text of a spec keeps the gate busy."),
        "gate.pure": Requirement("D11", "The gate gives the same report for the same input."),
        "gate.refused-error": Requirement("issue 2", "A refusal is an error with every finding."),
        "gate.report-json": Requirement("issue 2", "A report survives JSON."),
        "gate.total": Requirement("D11", "No spec that parses makes the gate raise."),
        "http.answers": Requirement(
            "MCP, RFC 9110", "Requests reach the relay, and its answers the client, as they are."
        ),
        "http.bounded": Requirement("issue 3", "What clients can take of the HTTP front is bounded."),
        "http.client-gone": Requirement("issue 3", "A client that goes before its answer is reported once."),
        "http.close": Requirement("issue 3", "Closing the HTTP front leaves no connection and no listener."),
        "http.deadlines": Requirement("issue 3", "Who takes too long over HTTP is given up."),
        "http.event-streams": Requirement("MCP, WHATWG", "Events before the answer make it an event stream."),
        "http.one-at-a-time": Requirement("RFC 9112 §9.3.2", "Requests sent ahead are answered in their order."),
        "http.one-reading": Requirement(
            "RFC 9112 §11.2", "A request that can be read in two ways is refused, with all behind it."
        ),
        "http.slow-readers": Requirement("issue 3", "What a client does not read is counted, and ends in time."),
        "http.split-anywhere": Requirement("issue 3", "Where the bytes of a request are split does not matter."),
        "masking.chunks": Requirement("H6", "A secret is masked wherever the stream is cut."),
        "masking.cost": Requirement(
            "issue 3", "The cost of masking grows with the bytes that are read, not with the number of secrets."
        ),
        "masking.encodings": Requirement("H6", "A secret is masked in every common encoding."),
        "masking.engine": Requirement(
            "issue 3", "The proxy's engine can mask without importing what it does not need."
        ),
        "masking.exact": Requirement("H6", "What is no secret is left as it is."),
        "masking.immutable": Requirement("H6", "A redactor does not change."),
        "masking.json": Requirement("H6", "Keys and values of a document are masked, however deep."),
        "masking.learned": Requirement("issue 3", "A secret learned later is masked as one known before."),
        "masking.lines": Requirement("H6", "A secret of several lines is masked line by line."),
        "masking.overlap": Requirement("H6", "Overlapping secrets leave no tail."),
        "masking.short": Requirement("H6", "A short secret is masked as a word only."),
        "masking.silent": Requirement("H6", "A redactor shows no secret itself."),
        "masking.untouched": Requirement(
            "issue 3", "What has nothing to mask is returned itself, and what has is copied."
        ),
        "mcp.allow-empty": Requirement(
            "issue 3", "Leave to do something with resources or prompts that are not granted is refused."
        ),
        "mcp.allowed-once": Requirement(
            "issue 3", "A granted tool's target, limits and logged arguments are told with the decision."
        ),
        "mcp.allowlist": Requirement("D8, D9", "Through a real agent, exactly the allowlist can be called."),
        "mcp.allowlist-exact": Requirement("D9", "The agent sees exactly the allowlist."),
        "mcp.answers-at-once": Requirement("issue 3", "An answer waits for nothing but its own event on record."),
        "mcp.argument-schema": Requirement("issue 2", "Arguments are judged by the grant's schema and the tool's own."),
        "mcp.attention": Requirement(
            "issue 3", "An answer is looked for before the loop sleeps, for a moment, and rarely when it is in vain."
        ),
        "mcp.bounded-audit": Requirement(
            "issue 3", "A chain that is held or cannot grow refuses calls in time, and lets them go on afterwards."
        ),
        "mcp.bounded-clients": Requirement(
            "issue 3", "What clients do not read is bounded, and read from nobody beyond it."
        ),
        "mcp.bounded-many": Requirement(
            "issue 3", "Thousands of calls in flight are answered, or told that they are too many."
        ),
        "mcp.bounded-results": Requirement(
            "issue 3", "Results up to 10 MiB arrive; a larger one fails its call alone."
        ),
        "mcp.bounded-servers": Requirement("issue 3", "A server that floods keeps no other from being served."),
        "mcp.branch-format": Requirement(
            "issue 3", "A branch argument is a plain branch that is not protected, or one of the spec's."
        ),
        "mcp.budgets": Requirement(
            "issue 3", "A tool is called no more often than its grant says, in all and per minute."
        ),
        "mcp.close-leaves-nothing": Requirement("issue 2", "Closing leaves no process, thread or socket."),
        "mcp.conformance": Requirement(
            "issue 3", "The official suite finds through the proxy what it finds without, save what is listed."
        ),
        "mcp.conformance-nothing-granted": Requirement(
            "issue 3", "Where nothing is granted, nothing of the official suite reaches the server."
        ),
        "mcp.conformance-other-era": Requirement(
            "issue 3", "A server of either era serves the official suite's scenarios that both eras have."
        ),
        "mcp.contradiction": Requirement("ADR §4.5", "A tool both granted and excluded is refused."),
        "mcp.declares-tools-only": Requirement("facts/mcp §7.6", "The proxy declares tools, and nothing else."),
        "mcp.dies-with-parent": Requirement(
            "facts/mcp §2.29", "Servers die with the proxy's process, SIGKILL included."
        ),
        "mcp.dns-rebinding": Requirement("facts/mcp §2.18", "A strange Host or Origin is refused."),
        "mcp.duplicate": Requirement("ADR §4.5", "A tool granted twice is refused."),
        "mcp.empty": Requirement("ADR §4.5", "An empty allowlist is refused."),
        "mcp.empty-allows-nothing": Requirement("facts/mcp §0.8", "An empty allowlist allows nothing."),
        "mcp.engine-beats": Requirement(
            "issue 3", "The engine is told twice a second, and at once when it matters, whether the handoff may go on."
        ),
        "mcp.engine-configuration": Requirement(
            "D8, issue 3", "The engine is handed all that it needs to decide, over the channel."
        ),
        "mcp.engine-dies": Requirement(
            "issue 3", "An engine that dies or breaks the protocol is known to have failed."
        ),
        "mcp.engine-from-nothing": Requirement(
            "D7", "The engine starts with an environment from nothing and one descriptor, the channel."
        ),
        "mcp.engine-killed": Requirement("issue 3", "An engine that does not do what it is told is killed."),
        "mcp.engine-listing": Requirement(
            "issue 3", "Listing tools starts the servers, gives a pin of each granted tool, and leaves nothing."
        ),
        "mcp.engine-questions": Requirement(
            "D8", "What the engine asks back is answered, put on record, and learnt before it is said."
        ),
        "mcp.exact-names": Requirement("facts/mcp §2.10", "A name matches exactly or not at all."),
        "mcp.excluded-wins": Requirement("design §6", "An excluded tool is refused, whatever grants it."),
        "mcp.form": Requirement("facts/mcp §2.15", "A request has one form: method, content type, no encoding."),
        "mcp.format-place": Requirement(
            "issue 3", "A format that speaks of a repository which the handoff has not is refused."
        ),
        "mcp.github-server": Requirement("issue 2", "The sandbox's GitHub MCP server works on the official SDK."),
        "mcp.grant-names": Requirement(
            "design §6", "A grant that is ambiguous, unknown or doubled is refused before the start."
        ),
        "mcp.handoff-mcp": Requirement(
            "issue 3", "handoff-mcp joins a stdio client to its proxy, and tells when it cannot."
        ),
        "mcp.headers-agree": Requirement("MCP 2026-07-28", "Headers that differ from the body are refused."),
        "mcp.helper-formats": Requirement(
            "issue 3", "A helper format is asserted wherever it stands, and refused where it could not be."
        ),
        "mcp.in-flight-cap": Requirement("facts/mcp §7.12", "Calls in flight are bounded."),
        "mcp.inspector": Requirement("issue 3", "The Inspector works in front of the proxy, in both eras."),
        "mcp.light-imports": Requirement("D8", "The proxy's modules import no SDK."),
        "mcp.limit": Requirement("issue 3", "A limit that allows no call is refused."),
        "mcp.list-all-pages": Requirement("facts/mcp §2.26", "A paged list is read to its end."),
        "mcp.log-credential": Requirement("H6", "An argument that names a secret is not written to the audit."),
        "mcp.lookalike-keys": Requirement(
            "facts/mcp §2.3", "An argument that only looks like a constrained one is refused."
        ),
        "mcp.masked-everywhere": Requirement("H6", "No part of a server's answer carries a secret of the handoff."),
        "mcp.no-exclusions": Requirement("ADR §6.2", "A spec that excludes no tool is noted."),
        "mcp.oauth": Requirement(
            "issue 3",
            "A bearer token is got by client credentials, kept until its end, and masked.",
        ),
        "mcp.one-address": Requirement("issue 2", "There is one address."),
        "mcp.path-in-worktree": Requirement(
            "ADR filesystem_write_outside_worktree", "A path argument stays inside, links and dots resolved."
        ),
        "mcp.pin-bounded": Requirement(
            "issue 3", "What a server lists costs no more to hold against a pin than a pin may."
        ),
        "mcp.pin-digest": Requirement(
            "issue 3, facts/mcp §7.8", "Each change of a granted tool's definition is another digest."
        ),
        "mcp.pin-drift": Requirement("issue 3", "How a definition differs from its pin is told in readable lines."),
        "mcp.pin-servers": Requirement(
            "issue 3", "At provisioning the servers run as they will for the agent, for a moment, and nothing is left."
        ),
        "mcp.pin-withdrawn": Requirement(
            "issue 3", "A tool whose definition is not the pinned one is withdrawn, and the change is audited."
        ),
        "mcp.plain-schema": Requirement(
            "issue 3", "A plain schema is judged without a library, exactly as the library judges it."
        ),
        "mcp.pinned": Requirement(
            "issue 3", "The definition of each granted tool is signed at provisioning, or nothing is."
        ),
        "mcp.plain-grants": Requirement(
            "issue 3", "The engine reads the spec's grants without loss, and nothing it does not know."
        ),
        "mcp.param-headers": Requirement(
            "MCP 2026-07-28", "Arguments that a tool wants as headers are there, agree with the body, or are refused."
        ),
        "mcp.private-cache": Requirement("facts/mcp §7.6", "A filtered list is private and outlives no handoff."),
        "mcp.protocol-tables": Requirement("MCP", "Our protocol tables agree with the SDK's."),
        "mcp.proxy-command": Requirement(
            "issue 3", "handoff proxy serves a handoff's tools, and nothing else of it, until it ends."
        ),
        "mcp.published-servers": Requirement("issue 2", "Published servers work behind the proxy."),
        "mcp.read-values-masked": Requirement(
            "H6", "A value that the agent read from the vault is in no event and no later result."
        ),
        "mcp.reference-server": Requirement("issue 3", "Our reference server passes the official suite directly."),
        "mcp.refused-like-absent": Requirement(
            "facts/mcp §7.4", "To the agent a refused tool does not exist; the audit tells them apart."
        ),
        "mcp.remote-asks": Requirement("issue 3", "A remote server that may ask the agent's side is warned of."),
        "mcp.repository-format": Requirement("issue 3", "A repository argument is the spec's own."),
        "mcp.resource-grants": Requirement(
            "issue 3", "A resource is granted by name or prefix, and no spelling leads out of one."
        ),
        "mcp.resources-wide": Requirement("issue 3", "All resources, or all of a scheme, are refused."),
        "mcp.results-masked": Requirement("D7", "Results and errors are masked, and what was masked is counted."),
        "mcp.schema-ref": Requirement("facts/mcp §1", "A grant's schema that refers elsewhere is refused."),
        "mcp.sdk-client": Requirement("issue 2", "The SDK's client works in front of the proxy, in every mode."),
        "mcp.sdk-lines": Requirement("issue 3", "Servers on every line of the official SDKs work behind the proxy."),
        "mcp.secret-unknown": Requirement("design §6", "A server that wants a secret the handoff has not is refused."),
        "mcp.server-secrets": Requirement(
            "issue 3", "A server behind the proxy gets the secrets granted to it, and no others."
        ),
        "mcp.server-unknown": Requirement("design §6", "A grant on a server that is not declared is refused."),
        "mcp.sessions": Requirement("MCP 2025-11-25", "Sessions are bound to the handoff and bounded in number."),
        "mcp.several-servers": Requirement("issue 2", "Several servers stand behind one address."),
        "mcp.size-cap": Requirement("facts/mcp §7.12", "A message is bounded in size and depth."),
        "mcp.server-streams-closed": Requirement(
            "issue 3, facts/mcp §2.28",
            "Nobody speaks to a server past the proxy: its streams cannot be opened by others.",
        ),
        "mcp.soak": Requirement("issue 3", "After an hour's worth of calls memory is flat and no descriptor leaked."),
        "mcp.start-all-or-nothing": Requirement("issue 2", "A start that fails leaves nothing running."),
        "mcp.strangers-coalesced": Requirement(
            "facts/mcp §2.30", "A flood of strangers' requests is counted, and not written one by one."
        ),
        "mcp.token-required": Requirement("issue 2", "Nothing is answered without the handoff's own token."),
        "mcp.tool-name": Requirement("ADR §4.5", "A name that no tool can have is refused."),
        "mcp.traced": Requirement(
            "issue 3", "A call is one span as OpenTelemetry's conventions for MCP have it, its server's a child of it."
        ),
        "mcp.traced-never-holds-up": Requirement("issue 3", "A collector that is slow, gone or rude costs no call."),
        "mcp.traced-no-secret": Requirement("D7", "No credential, argument or result leaves with a span."),
        "mcp.traced-refusals": Requirement("issue 3", "What is refused, cut or fails is a span with an error."),
        "mcp.traced-when-configured": Requirement(
            "issue 3", "There are spans when the operator has set where they go; without that nothing is imported."
        ),
        "mcp.upstream-cannot-initiate": Requirement(
            "facts/mcp §2.17", "What a server asks or sends by itself goes nowhere."
        ),
        "mcp.upstream-dies": Requirement("issue 2", "A dead or stubborn server fails its calls and is ended."),
        "mcp.url-host": Requirement("issue 3", "A URL argument goes over https to a listed host, for every reader."),
        "mcp.url-plain": Requirement("issue 3", "A server over plain http that is not on this machine is refused."),
        "mcp.vault-get-secret": Requirement("issue 2", "The built-in vault server reads the handoff's own secrets."),
        "mcp.vault-scope": Requirement("issue 2", "The built-in vault server reads nothing else."),
        "mcp.wildcard": Requirement("ADR §4.5", "A wildcard among tools is refused."),
        "mcp.withdrawn": Requirement("issue 3", "A withdrawn tool is neither listed nor allowed."),
        "names.round-trip": Requirement("design §3", "What names format, they read back."),
        "names.shortened": Requirement("design §3", "A shortened name is stable and distinct."),
        "policy.adr-ceilings": Requirement("ADR §3.1", "The defaults are the ADR's ceilings."),
        "policy.digest": Requirement("D6", "A policy has one digest."),
        "policy.operators": Requirement("H7", "Operators' keys are keys."),
        "policy.tighten-only": Requirement("issue 2", "A policy can be tightened and never loosened."),
        "sandbox.contracts": Requirement("D12", "Emulated answers fit the vendor's own OpenAPI text."),
        "sandbox.environment": Requirement("D12", "The sandbox gives the configuration that points at it."),
        "sandbox.faults": Requirement("D12", "Faults happen exactly where they are asked for."),
        "sandbox.github.app-jwt": Requirement("D12", "App JWTs are checked as GitHub checks them."),
        "sandbox.github.ceiling": Requirement("D12", "A token cannot exceed its installation."),
        "sandbox.github.errors": Requirement("D12", "Errors are in GitHub's words."),
        "sandbox.github.rulesets": Requirement("D12", "Rulesets protect branches."),
        "sandbox.github.scope": Requirement("D12", "A token does what its permissions say."),
        "sandbox.github.token": Requirement("D12", "Tokens have the vendor's form, expire and can be revoked."),
        "sandbox.lifecycle": Requirement("D12", "Emulators start fast and leave nothing."),
        "sandbox.log": Requirement("D12", "The request log holds no secret."),
        "sandbox.stripe.deletion": Requirement("D12", "A deleted key is dead."),
        "sandbox.stripe.errors": Requirement("D12", "Errors are in Stripe's shape."),
        "sandbox.stripe.mode": Requirement("D12", "Test and live are kept apart."),
        "sandbox.stripe.no-keys-over-http": Requirement("D12", "No key is made or shown over HTTP."),
        "sandbox.stripe.permissions": Requirement("D12", "A key does what its permissions say."),
        "settings.env-file": Requirement(
            "D7", ".env is read from the configuration directory, never from the working directory."
        ),
        "settings.environment": Requirement("D7", "The environment wins over the file, and nothing is interpolated."),
        "settings.errors-name": Requirement("issue 2", "An error names the variable or file."),
        "settings.keys": Requirement("D6", "Keys are made once, and two that come first agree."),
        "settings.strict-json": Requirement("design §6", "Configuration with duplicate keys is refused."),
        "settings.trusted-directory": Requirement(
            "D6", "A configuration directory that others can write to or own is refused."
        ),
        "settings.trusted-files": Requirement("D6", "Files that others could have written are refused."),
        "spawn.any-user": Requirement("issue 6", "An ordinary user gets the same."),
        "spawn.blind-bound": Requirement("D6", "A vault that gives no answer for too long ends the run."),
        "spawn.block": Requirement("design §5", "Leaving the block ends the run."),
        "spawn.callable": Requirement("design §5", "Any callable is a launcher."),
        "spawn.dies-with-parent": Requirement(
            "facts/spawn §4", "The whole tree ends with its parent, SIGKILL included."
        ),
        "spawn.exit-status": Requirement("design §5", "The exit status is the agent's."),
        "spawn.folder-removed": Requirement("D7", "The run's folder is removed, whatever the agent made of it."),
        "spawn.hardened": Requirement("facts/spawn §4", "Own session, no new privileges, umask 077, default signals."),
        "spawn.light-supervisor": Requirement(
            "facts/spawn §4", "The supervisor needs nothing but the standard library."
        ),
        "spawn.no-leak": Requirement("D4", "Many runs leave no descriptor, thread, process or folder."),
        "spawn.nothing-left": Requirement("D4", "A run leaves no thread, process, descriptor or folder."),
        "spawn.only-stdio": Requirement("facts/spawn §4", "The agent has descriptors 0 to 2."),
        "spawn.receipt": Requirement("design §5", "The receipt says why, how fast, and what was left."),
        "spawn.refused-clean": Requirement("H4, D6", "A refused launch leaves nothing."),
        "spawn.revoke-on-exit": Requirement("design §5", "Where asked, the end of the run revokes."),
        "spawn.signals": Requirement("design §5", "Signals are passed on."),
        "spawn.streams": Requirement("design §5", "Streams are the caller's."),
        "spawn.supervisor-killed": Requirement(
            "facts/spawn §4", "A supervisor that is killed or stopped takes the run with it."
        ),
        "spawn.watched": Requirement("issue 2", "A running handoff is watched, and ends with its revocation."),
        "spawn.whole-tree": Requirement("facts/spawn §4", "Daemons, forks and orphans end with the run."),
        "spec.bounds": Requirement("issue 2", "A spec that is too large or too deep is refused."),
        "spec.closed-names": Requirement("issue 2", "Names are closed ASCII."),
        "spec.digest": Requirement("D6", "The digest is stable under spelling and changes with meaning."),
        "spec.duplicate-keys": Requirement("design §6", "Duplicate keys are refused at any depth."),
        "spec.examples": Requirement("ADR §8", "The examples parse."),
        "spec.field-paths": Requirement("issue 2", "An error names the field."),
        "spec.frozen": Requirement("issue 2", "A spec is frozen all the way down."),
        "spec.load": Requirement("issue 2", "A file that cannot be read is a clear error."),
        "spec.mcp-reserved": Requirement("MCP", "What is passed on as custom is no method of the protocol's own."),
        "spec.mcp-servers": Requirement(
            "issue 3", "A server's URL, headers, OAuth client, protocol and allowances are read strictly."
        ),
        "spec.regular-file": Requirement(
            "issue 2", "Specs and approvals are read from regular files, and no further than a limit."
        ),
        "spec.round-trip": Requirement("issue 2", "A spec survives JSON."),
        "spec.schema": Requirement(
            "design §6", "The published JSON Schema is valid and accepts what the parser accepts."
        ),
        "spec.strict-json": Requirement("issue 2", "JSON that parsers read differently is refused."),
        "stdio.bounded": Requirement(
            "issue 3", "A client that asks much or reads nothing is made to wait, and nobody else."
        ),
        "stdio.cancel": Requirement("MCP", "A call that a client cancels ends at its server, and is not answered."),
        "stdio.connections": Requirement("issue 3", "Connections over stdio are bounded."),
        "stdio.ends": Requirement(
            "issue 3", "What was asked is answered, or stopped at its server, however a conversation ends."
        ),
        "stdio.greeting": Requirement(
            "issue 3", "Over stdio nobody is served without this handoff's token, in time and in form."
        ),
        "stdio.ids": Requirement("facts/mcp §2.7", "An id in flight is refused over stdio, whatever asks for it."),
        "stdio.lines": Requirement("facts/mcp §2.1", "A line is a line for every reader, and bounded."),
        "stdio.notifications": Requirement("MCP", "What belongs to no request reaches a client over stdio."),
        "stdio.never-blocks": Requirement(
            "issue 3", "A client that shares its streams with the proxy cannot make it wait in them."
        ),
        "stdio.streams": Requirement("issue 3", "Streams that could block, or are not two, are refused."),
        "surface.facts": Requirement("D3", "A surface declares how it is minted, found again, and ended."),
        "surface.github.app-ceiling": Requirement("ADR §7", "An App that has too much is refused."),
        "surface.github.backstop": Requirement("ADR §5.3", "A repository without a pull-request rule is refused."),
        "surface.github.backstop-review": Requirement(
            "ADR §5.1", "A branch rule that asks for no review is no backstop."
        ),
        "surface.github.contract": Requirement("D12", "Requests fit GitHub's OpenAPI text."),
        "surface.github.keeper": Requirement("D3", "Installation tokens are minted by a keeper."),
        "surface.github.one-repository": Requirement("ADR §5", "A token is for exactly one repository."),
        "surface.github.pat": Requirement("ADR §5.2", "A personal access token is not minted."),
        "surface.github.proof-in-its-words": Requirement("D3", "A 401 counts as death only in GitHub's own words."),
        "surface.github.token-shape": Requirement("facts/surfaces §2.9", "A token of another shape is refused."),
        "surface.github.vendor-end": Requirement("D3", "An end that the vendor cannot mean is not believed."),
        "surface.infisical.lifetime": Requirement("ADR §3.1", "The identity ends with the handoff."),
        "surface.infisical.one-identity": Requirement("H1", "A second identity of the same name is not made."),
        "surface.infisical.proof": Requirement("H8", "A deleted identity is seen dead."),
        "surface.infisical.scope": Requirement("ADR §3.1", "The scope is proven by reads inside and outside."),
        "surface.operator-supplied": Requirement(
            "D3", "A missing operator's credential stops the provisioning before anything."
        ),
        "surface.registry": Requirement("design §4", "The registry names the surfaces of this version."),
        "surface.stripe.contract": Requirement("D12", "Requests fit Stripe's OpenAPI text."),
        "surface.stripe.in-its-words": Requirement("D3", "A 401 counts as death only in Stripe's own words."),
        "surface.stripe.key-shape": Requirement(
            "facts/surfaces §1.3", "Only a restricted key of the right mode is taken."
        ),
        "surface.stripe.negative-probes": Requirement("facts/surfaces §2.4", "What must be absent is probed for."),
        "surface.stripe.no-vendor-text": Requirement("facts/surfaces §2.4", "Stripe's error texts are not quoted."),
        "surface.stripe.not-probed": Requirement("D5", "What was not verified is named in the manifest."),
        "surface.stripe.operator-supplied": Requirement("D3", "A person makes the key, and a person ends it."),
        "surface.stripe.positive-probes": Requirement("facts/surfaces §2.4", "What was asked for is probed for."),
        "surface.stripe.probes-change-nothing": Requirement("facts/surfaces §2.4", "Probes create nothing."),
        "surface.stripe.vocabulary": Requirement("facts/surfaces §2.4", "Permissions are Stripe's own."),
        "surface.supply-hint": Requirement(
            "D3", "A missing operator's credential is asked for with everything filled in."
        ),
        "transport.bounded": Requirement("D11", "Every request has a deadline and a bounded answer."),
        "transport.form": Requirement("D11", "Requests are sent as they were given."),
        "transport.https-only": Requirement("D11", "Anything but loopback is https."),
        "transport.never-twice": Requirement("D3", "A request that may have been carried out is never sent again."),
        "transport.no-environment": Requirement("D11", "No proxy variable reroutes a request."),
        "transport.no-redirect": Requirement("D11", "Redirects are not followed."),
        "transport.not-sent": Requirement("D3", "A request that did not leave is known not to have."),
        "transport.quiet": Requirement("H6", "Logs and errors hold no secret."),
        "transport.retry-after": Requirement("D11", "Retry-After is honoured within a bound."),
        "transport.retry-idempotent": Requirement("D11", "Idempotent requests are tried again."),
        "upstream.bounded": Requirement(
            "issue 3", "A flood, an endless line and a server that does not read cost bounded memory."
        ),
        "upstream.config": Requirement(
            "D7", "A server's configuration shows no secret, and a wrong one is named without its values."
        ),
        "upstream.http-bearer": Requirement(
            "issue 3", "An OAuth bearer is renewed once when it is refused, and no tool runs twice for it."
        ),
        "upstream.http-cancel": Requirement(
            "facts/mcp §1", "Over HTTP nobody waits on a connection whose answer is not wanted."
        ),
        "upstream.http-eras": Requirement(
            "facts/mcp §1", "A server over HTTP is spoken to in each era that it knows, with that era's headers."
        ),
        "upstream.http-headers": Requirement(
            "facts/mcp §2.11", "What a server over HTTP is sent in headers is ours alone, and says what the body says."
        ),
        "upstream.http-once": Requirement("issue 3", "A tool's call is sent once."),
        "upstream.http-sessions": Requirement(
            "issue 3", "Each client has a session of its own upstream; one that the server lost begins anew."
        ),
        "upstream.http-streams": Requirement(
            "issue 3", "Event streams are read event by event, end with their answer, and can be gone on with."
        ),
        "upstream.http-strict": Requirement(
            "issue 3", "An HTTP answer of another form than MCP's fails its call and nothing else."
        ),
        "upstream.http-tls": Requirement("issue 3", "A server whose certificate is not trusted is sent nothing."),
        "upstream.large-messages": Requirement("issue 3", "Messages far longer than a pipe pass both ways."),
        "upstream.many-in-flight": Requirement(
            "issue 3", "A thousand calls in flight are each answered with their own."
        ),
        "upstream.no-leak": Requirement("issue 3", "Servers that come and go leave no descriptor behind."),
        "upstream.noise-dropped": Requirement(
            "facts/mcp §2.7", "A server answers what it was asked; everything else is the relay's to judge."
        ),
        "upstream.own-ids-only": Requirement("issue 3", "A server's id is sent back only when it is a short one."),
        "upstream.restart": Requirement(
            "issue 3", "A server that dies is started again with pauses that grow; what waited fails at once."
        ),
        "upstream.sdk-servers": Requirement(
            "issue 3", "Servers of the official SDK are spoken to, over each transport and in each era."
        ),
        "upstream.sse": Requirement(
            "WHATWG HTML 9.2", "Server-sent events are read alike however their bytes are split."
        ),
        "upstream.stderr": Requirement("issue 3", "A server's stderr is captured by whole lines, bounded."),
        "upstream.stdio-handshake": Requirement(
            "facts/mcp §1", "A server over stdio is spoken to in the era that it knows."
        ),
        "vault.absent-is-success": Requirement("D10", "Deleting what is absent is no error."),
        "vault.contract": Requirement("D1", "An implementation is a Vault; closing twice is fine."),
        "vault.durable": Requirement("D2", "A killed writer leaves all that it acknowledged."),
        "vault.encrypted": Requirement("D1", "No secret is in a file in any common encoding."),
        "vault.errors": Requirement("errors.py", "No raw driver error comes through."),
        "vault.folders": Requirement(
            "vaults/base.py", "Folders are made once, with parents, and deleted with all they hold."
        ),
        "vault.guards": Requirement("D2", "A guarded write or deletion happens only in the folder that was meant."),
        "vault.identity-read-back": Requirement("D5", "Identities are found by exact name, as they were asked for."),
        "vault.key": Requirement("D1", "One key is agreed by all and never replaced in silence."),
        "vault.light-import": Requirement("design §5", "Importing the package loads no driver and no cryptography."),
        "vault.lost-database": Requirement(
            "D10", "A database that was emptied or deleted is an error, and not a new vault."
        ),
        "vault.model": Requirement("D1", "Any sequence of operations agrees with a model."),
        "vault.private-files": Requirement("D1", "Files are 0600 in a 0700 directory; others' are refused."),
        "vault.processes": Requirement("D1", "Many processes may use it at once."),
        "vault.read-only": Requirement("vaults/base.py", "A session neither lists nor writes."),
        "vault.schema-version": Requirement("D1", "A newer schema is refused."),
        "vault.secrets": Requirement("vaults/base.py", "Values are read back exactly."),
        "vault.snapshot": Requirement("vaults/base.py", "A folder is read as of one instant."),
        "vault.tamper": Requirement("D1", "Altered and moved rows are errors, never values."),
        "vault.threads": Requirement("D1", "Many threads share one handle."),
    }
)


def requirement(*ids: str) -> Callable[[F], F]:
    """Tag a test with the requirements that it shows to hold."""

    def tag(test: F) -> F:
        for one in ids:
            test = pytest.mark.requirement(one)(test)
        return test

    return tag
