"""Records docs/demo.svg, the README's picture: python docs/demo.py (runs `specdec generate` for real)."""

from __future__ import annotations

import pathlib
import re

from rich.console import Console

from specdec import cli

OUT = pathlib.Path(__file__).with_name("demo.svg")


def main() -> None:
    """Runs the command with a console that records, and saves what it shows."""
    console = Console(record=True, width=100, force_terminal=True, highlight=False)
    cli.Console = lambda **_: console  # type: ignore[assignment,misc]
    cli.app(["generate", "--max-new-tokens", "128"], standalone_mode=False)
    svg = console.export_svg(title="specdec generate")
    # No fonts from the network: whoever looks at the picture has a monospaced one.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S).replace("Fira Code", "monospace")
    OUT.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
