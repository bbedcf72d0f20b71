"""`python -m door`: the tokens that open this house."""

import fcntl
import secrets
import sys
from pathlib import Path

import click
import msgspec

from door import roles


@click.group()
def main() -> None:
    """Tokens of those who may call Grantbook."""


@main.command()
@click.option("--name", required=True, help="Whose token it is; appears in logs and as the actor of events.")
@click.option("--role", required=True, type=click.Choice(roles.ROLES), help="What its holder may do.")
@click.option(
    "--file",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The token file that the services read (GRANTBOOK_TOKENS_FILE); made when absent.",
)
def mint(name: str, role: roles.Role, path: Path) -> None:
    """Print a new token, once, and add its hash to the file.

    Services read the file when they start: restart them to let the token in. To take one out, remove its entry.
    """
    try:
        roles.check_name(name)
        # Two mints at once must not lose one of the tokens. The lock is on the folder, since the file is replaced.
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = roles.read(path) if path.exists() else roles.TokenFile()
            token = roles.new_token(role, secrets.token_bytes(roles.MIN_TOKEN_BYTES))
            roles.write(path, msgspec.structs.replace(file, tokens=(*file.tokens, roles.entry(name, role, token))))
    except roles.TokensRefused as refused:
        raise click.ClickException(str(refused)) from None
    except OSError as error:
        raise click.ClickException(f"The token file {path} cannot be written: {error.strerror}.") from None
    click.echo(token)
    if sys.stdout.isatty():
        click.echo(
            "It is shown this once. Its hash was added to the file; restart the services to let it in.", err=True
        )


if __name__ == "__main__":
    main()
