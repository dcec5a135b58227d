"""`handoff check`: the gate's verdict on a spec, as the ADR's §6.2 checklist."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent_token_injector.cli.common import SPEC, approvals_option, json_option, load_approvals, load_spec
from agent_token_injector.cli.terminal import emit, hang, paper
from agent_token_injector.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from agent_token_injector.gate import GateReport


@click.command("check")
@click.argument("spec", type=SPEC, required=False)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a spec, and check nothing.")
@approvals_option
@json_option
def command(spec: Path | None, schema: bool, approvals_file: Path | None, as_json: bool) -> int:
    """Hold SPEC against the provisioning gate and print the checklist.

    Calls nobody and changes nothing. Exit 3 when the gate refuses.
    """
    if schema:
        from agent_token_injector.spec import HandoffSpec

        emit(HandoffSpec.model_json_schema())
        return ExitCode.OK
    if spec is None:
        raise click.UsageError("name a spec, or --schema")
    report = gate_report(spec, approvals_file)
    if as_json:
        emit(report.to_dict())
    else:
        print_report(report, paper())
    return ExitCode.OK if report.ok else ExitCode.GATE_REFUSED


def gate_report(path: Path, approvals_file: Path | None) -> GateReport:
    """The gate's report under this installation's policy."""
    from agent_token_injector.clock import SystemClock
    from agent_token_injector.gate import check
    from agent_token_injector.policy import Policy
    from agent_token_injector.settings import Settings

    settings = Settings.load()
    policy = Policy().tightened(settings.policy_overrides()).with_operators(settings.operators())
    return check(
        load_spec(path),
        policy,
        SystemClock().now(),
        approvals=load_approvals(path, approvals_file),
        layout=settings.layout(),
    )


def print_report(report: GateReport, console: Console) -> None:
    """The checklist with its marks, then what refuses it and how to mend that."""
    from rich.markup import escape

    section = ""
    for item in report.checklist:
        if item.section != section:
            section = item.section
            console.print(f"[bold]{section}:[/]")
        style = {"x": "green", " ": "bold red", "-": "dim"}[item.mark]
        body = escape(item.title)
        hang(console, f"[{style}]\\[{item.mark}][/] ", body, style="dim" if item.mark == "-" else None)
        for line in item.detail:
            hang(console, "      ", escape(line), style="dim")
    for finding in report.findings:
        word, style = ("refused", "bold red") if finding.severity == "refuse" else ("note", "yellow")
        hang(console, f"[{style}]{word}[/] ", escape(str(finding)))
        hang(console, "      mend: ", escape(finding.mend), style="dim")
    verdict = "[bold green]the gate is open[/]" if report.ok else "[bold red]the gate refuses this handoff[/]"
    console.print(f"{report.handoff_id}: {verdict}")
