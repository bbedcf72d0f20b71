"""`grantbook`: the command line for auditors and operators."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

try:
    import click
    import httpx
    from rich.console import Console
    from rich.text import Text

    from grantbook.sdk.doctor import Doctor
    from grantbook.sdk.findings import IN_VAIN, Finding, split
    from grantbook.sdk.replay import main as main
except ImportError:
    sys.exit("The command line needs more than the library: pip install 'grantbook[cli]'")

PROBLEMS: Final = 1
"""Exit status where something must be mended."""
NOT_CHECKED: Final = 2
"""Exit status where nothing could be looked at; click's own for wrong usage, too."""
MAX_TIMEOUT_SECONDS: Final = 300.0
MARKS: Final = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "problem": ("PROBLEM", "bold red")}
ORIGIN: Final = "http://localhost:6274"
"""Where MCP Inspector's page is."""


@main.command()
@click.option("--url", required=True, help="Base URL of the installation, as agents reach it.")
@click.option("--issuer", help="Issuer of the authorization server, path included. Without it: the URL.")
@click.option("--origin", default=ORIGIN, show_default=True, help="Origin of a page that an agent runs in.")
@click.option("--register", is_flag=True, help="Also register a client, read it, and delete it again.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for each answer.")
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON Lines.")
def doctor(url: str, issuer: str | None, origin: str, register: bool, timeout: float, as_json: bool) -> None:  # noqa: FBT001  click hands it so
    """Look at an installation as an agent would, and say what to do about what is wrong.

    Is registration reached through the proxy, is it advertised (RFC 8414), may pages use it (CORS), is the rest closed?
    Nothing is stored, unless --register is given.

    \b
    Examples:
      grantbook doctor --url https://grantbook.example.com
      grantbook doctor --url https://grantbook.example.com --issuer https://idp.example.com/tenant1
      grantbook doctor --url http://127.0.0.1:8080 --register

    \b
    Exit status: 0 no problem was found; 1 there are problems; 2 it could not be looked at, or wrong usage.
    """
    for name, value in (("--url", url), ("--issuer", issuer or url), ("--origin", origin)):
        if split(value) is None or not value.isascii():
            message = f"{name} is an address such as https://grantbook.example.com"
            raise click.UsageError(message)
    # Said this way round, it refuses what is no number, too.
    if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
        raise click.UsageError("--timeout is a number of seconds above 0, and at most 300.")
    console = Console(highlight=False)

    def tell(finding: Finding) -> None:
        if as_json:
            click.echo(msgspec.json.encode(finding).decode())
        else:
            console.print(_lines(finding), soft_wrap=True)

    found = asyncio.run(_look(url, issuer, origin, register=register, seconds=timeout, tell=tell))
    counts = Counter(each.level for each in found)
    if not as_json:
        console.print(f"\nproblems: {counts['problem']}, warnings: {counts['warning']}")
    if found[-1].level == "problem" and found[-1].check in IN_VAIN:
        sys.exit(NOT_CHECKED)
    if counts["problem"]:
        sys.exit(PROBLEMS)


async def _look(
    url: str, issuer: str | None, origin: str, *, register: bool, seconds: float, tell: Callable[[Finding], None]
) -> list[Finding]:
    found = []
    async with httpx.AsyncClient(timeout=seconds, headers={"Accept-Encoding": "identity"}) as http:
        looking = Doctor(http, url=url, issuer=issuer, origin=origin, register=register, seconds=seconds)
        async for finding in looking.look():
            tell(finding)
            found.append(finding)
    return found


def _lines(finding: Finding) -> Text:
    mark, style = MARKS[finding.level]
    text = Text.assemble((f"{mark:>8}", style), f"  {finding.check}: {finding.seen}")
    if finding.remedy:
        text.append(f"\n{'':>10}{finding.remedy}", style="dim")
    return text


if __name__ == "__main__":
    main()
