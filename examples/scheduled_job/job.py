"""A scheduled job: it knows what its environment says, and its environment holds only its own handoff."""

from __future__ import annotations

import os


def main() -> None:
    """Say which handoff this is; a real job would do its work here."""
    print(f"task {os.environ['HANDOFF_TASK_SLUG']}, until {os.environ['HANDOFF_EXPIRES_AT']}")
    print(f"format {os.environ['REPORT_FORMAT']}")


if __name__ == "__main__":
    main()
