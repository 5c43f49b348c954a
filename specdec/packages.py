"""`specdec cache`: the compiled packages on disk, for people."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from specdec.compiled import Store
from specdec.errors import OptionError

packages = typer.Typer(help="Compiled packages on disk.", no_args_is_help=True)


@packages.command("show")
def show() -> None:
    """Lists the compiled packages, the one used last first."""
    console, store = Console(highlight=False), _store()
    found = store.packages()
    listing = Table(box=None, pad_edge=False)
    for column in ("model", "MB", "built in", "key"):
        listing.add_column(column, justify="left" if column in ("model", "key") else "right")
    for package in found:
        listing.add_row(package.model, f"{package.num_bytes / 1e6:.1f}", f"{package.seconds:.0f} s", package.key[:12])
    if found:
        console.print(listing)
    total, most = sum(package.num_bytes for package in found) / 1e6, store.most_bytes / 1e6
    console.print(f"{len(found)} packages, {total:.1f} of at most {most:.0f} MB, in {store.folder}", soft_wrap=True)


@packages.command("clear")
def clear() -> None:
    """Removes all compiled packages."""
    store = _store()
    freed = store.clear()
    Console(highlight=False).print(f"{freed / 1e6:.1f} MB removed from {store.folder}", soft_wrap=True)


def _store() -> Store:
    try:
        return Store()
    except OptionError as error:
        raise typer.BadParameter(str(error)) from None
