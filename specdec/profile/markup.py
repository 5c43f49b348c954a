"""HTML that cannot hold another's HTML: every text is escaped unless it was made here."""

from __future__ import annotations

from html import escape

from specdec.profile.words import clean

_VOID = {"meta", "br"}


class Markup(str):
    """HTML that is safe to put into a page as it is."""

    __slots__ = ()


Child = str | None


def tag(kind: str, *children: Child, **attributes: str | None) -> Markup:
    """An element.

    Args:
        kind: its name; never from a profile.
        children: texts, which are cleaned and escaped, and Markup; None is left out.
        attributes: a trailing underscore is dropped, other underscores become hyphens; None is left out.

    Example:
        >>> tag("p", "1 < 2", tag("b", "!"), class_="note")
        '<p class="note">1 &lt; 2<b>!</b></p>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(clean(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if kind in _VOID:
        return Markup(f"<{kind}{given}>")
    return Markup(f"<{kind}{given}>{join(*children)}</{kind}>")


def join(*children: Child) -> Markup:
    """One after the other, texts escaped."""
    return Markup("".join(c if isinstance(c, Markup) else escape(clean(c)) for c in children if c is not None))
