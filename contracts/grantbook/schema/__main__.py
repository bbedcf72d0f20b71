"""Write the generated contracts anew, beside this file."""

from pathlib import Path

from grantbook.schema import documents


def main() -> None:
    """Write each file."""
    for name, text in documents().items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
