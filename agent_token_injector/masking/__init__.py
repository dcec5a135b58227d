r"""Masking: a known secret is replaced by asterisks wherever it is about to be shown, stored or sent (H6, D7).

A secret of eight characters or more is found

- as it is, and line by line where it has several lines (lines of eight characters or more);
- in base64 and base64url, at each of the three alignments it can have inside something longer, padded or not;
- in hexadecimal, in either case;
- percent-encoded, whole or in part, in either case, `+` for a space;
- escaped as JSON escapes, whole or in part (`\n`, `\/`, `\u00e9` in either case).

Base64 is also found where its `+`, `/` and `=` are escaped in turn, for a URL or by a JSON writer.

A shorter one would be found by accident everywhere: it is masked only as it is, and only as a whole word. Blank ones
are ignored. What was encrypted, hashed, reversed or encoded twice is not found: this is a net under honest code, and
no wall around a hostile agent (that is what expiry and revocation are for).

How it works: one automaton (Aho-Corasick) over a few rare bytes of every secret in every encoding reads the data once,
and once more with its escapes undone where it has some, so that the cost grows with the bytes that are read and hardly
with the number of secrets. Where it stops, the secret itself is looked for, by that encoding's rules and in the data
as it is. Matches that overlap are joined before anything is replaced, so that no tail of either stays visible.

    encodings   what a secret looks like in each encoding: the rules
    anchors     which bytes of it are searched for, and the automaton
    views       data with its escapes undone, and the way back
    index       some secrets, and every place where one stands
    redactor, stream   what is shown instead

Pure: no input, no output, no clock. Imports nothing but the automaton's library: the proxy's engine needs it.
"""

from __future__ import annotations

from agent_token_injector.masking.encodings import MIN_LENGTH
from agent_token_injector.masking.redactor import MAX_DEPTH, Redactor, Secret
from agent_token_injector.masking.stream import MASK, StreamRedactor

__all__ = ["MASK", "MAX_DEPTH", "MIN_LENGTH", "Redactor", "Secret", "StreamRedactor"]
