"""Write the generated contracts anew, beside this file: from a checkout, whose golden bytes are the examples."""

import json
from pathlib import Path
from typing import Final

from grantbook.events import EVENT_TYPES
from grantbook.schema import Example, documents

GOLDEN: Final = Path(__file__).parents[3] / "tests" / "contracts" / "golden"


def examples(golden: Path) -> dict[str, Example]:
    """One event of each type, as its golden bytes have it."""
    found = {}
    for type_ in EVENT_TYPES:
        headers = json.loads((golden / f"{type_}.headers.json").read_text(encoding="utf-8"))
        payload = json.loads((golden / f"{type_}.json").read_text(encoding="utf-8"))
        found[type_] = Example(headers.pop("subject"), headers, payload)
    return found


def main() -> None:
    """Write each file."""
    for name, text in documents(examples(GOLDEN)).items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
