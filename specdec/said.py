"""How commands end when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from specdec.errors import SpecdecError


@contextmanager
def one_line_errors(*more: type[Exception]) -> Iterator[None]:
    """One red line on standard error, and status 2.

    Args:
        more: exceptions that are the user's to mend, besides a SpecdecError or OSError.
    """
    wrong: tuple[type[Exception], ...] = (SpecdecError, OSError, *more)
    try:
        yield
    except wrong as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
