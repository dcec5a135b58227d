"""Audit: one hash-chained JSON Lines file a handoff, which says who did what, when, and how it was decided (H5).

`AuditLog` writes and reads the chains of a directory. `verify_file` checks one offline, from the file alone. A chain's
head goes into the signed manifest, and from then on not even its end can be cut off unnoticed.
"""

from agent_token_injector.audit.chain import ChainHead, genesis
from agent_token_injector.audit.event import AuditEvent, Decision, DetailValue, Draft
from agent_token_injector.audit.log import AuditLog
from agent_token_injector.audit.verify import Verification, read_file, verify_file

__all__ = [
    "AuditEvent",
    "AuditLog",
    "ChainHead",
    "Decision",
    "DetailValue",
    "Draft",
    "Verification",
    "genesis",
    "read_file",
    "verify_file",
]
