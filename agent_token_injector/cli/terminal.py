"""What the commands say and read: data on stdout, prose on stderr, credentials only from stdin or a file.

Prose never fails. When nobody reads stderr any more, a command still finishes what it is at: a kill-switch that stops
halfway because a pager was closed would be none.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console

_CREDENTIAL: Final = re.compile(
    r"(?:[prs]k_(?:live|test)_|gh[opsru]_|github_pat_|whsec_|AKIA|ASIA|HRKU-|eyJ|-----BEGIN )[\w.+/=-]{4,}"
    # Nothing that this project names mixes both cases and digits in one long word; tokens do.
    r"|(?<![\w./-])(?=[\w-]*[0-9])(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[\w-]{24,}(?![\w./-])"
)


def looks_like_credential(text: str) -> bool:
    """Whether a word that was typed as something else is likely to be a credential's value."""
    return _CREDENTIAL.search(text) is not None


def hide_credentials(text: str) -> str:
    """A text about what was typed, without what looks like a credential's value in it (D7)."""
    return _CREDENTIAL.sub("********", text)


def open_standard_streams() -> None:
    """Give stdin, stdout and stderr a place where the caller closed them.

    Otherwise the next file that is opened takes the number, and what is meant for the terminal is written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def say(text: str) -> None:
    """A line of prose on stderr."""
    try:
        click.echo(text, err=True)
    except OSError:
        _silence(2)


def emit(document: Any) -> None:
    """One JSON document on stdout. Raises HandoffError when it cannot be written."""
    write(json.dumps(document, indent=2, ensure_ascii=False))


def write(text: str) -> None:
    """Lines of data on stdout. Raises HandoffError when they cannot be written, BrokenPipeError when nobody reads."""
    try:
        click.echo(text)
    except BrokenPipeError:
        _silence(1)
        raise
    except OSError as error:
        raise _unwritable(error) from None


def prose() -> Console:
    """The console for people, on stderr; no colour where there is no terminal."""
    from rich.console import Console

    class Prose(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            try:
                super().print(*objects, **options)
            except OSError:
                self.on_broken_pipe()

        def on_broken_pipe(self) -> None:
            # rich would end the process here.
            self.quiet = True
            _silence(2)

    return Prose(stderr=True, highlight=False, soft_wrap=True)


def paper() -> Console:
    """The console for a command's own result, on stdout."""
    from rich.console import Console

    class Paper(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            try:
                super().print(*objects, **options)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise _unwritable(error) from None

        def on_broken_pipe(self) -> None:
            _silence(1)
            raise BrokenPipeError

    return Paper(highlight=False, soft_wrap=True)


def hang(console: Console, lead: str, body: str, *, style: str | None = None) -> None:
    """Print markup behind a lead; at a terminal what does not fit goes on under its own beginning."""
    if not console.is_terminal:
        console.print(f"{lead}{body}", style=style)
        return
    from rich.table import Table
    from rich.text import Text

    first = Text.from_markup(lead)
    grid = Table.grid()
    grid.add_column(no_wrap=True, width=first.cell_len)
    grid.add_column(overflow="fold")
    grid.add_row(first, Text.from_markup(body))
    console.print(grid, soft_wrap=False, style=style)


def read_line() -> str:
    """One line from stdin without its end; empty when stdin is closed or not text."""
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.readline().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def at_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def _silence(descriptor: int) -> None:
    """Send a stream nowhere, so that the interpreter does not fail on it once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _unwritable(error: OSError) -> Exception:
    from agent_token_injector.errors import HandoffError

    _silence(1)
    return HandoffError(
        "the output could not be written",
        cause=error.strerror,
        hint="what the command did stands; `handoff list` shows it",
    )
