"""Example texts of a page, in the colours of `specdec.trace`; what is known of a token shows on hover and on focus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from specdec.profile.markup import Markup, join, tag
from specdec.profile.schema import Example, ExampleToken
from specdec.profile.words import clean, count, degrees, share, short
from specdec.trace import LOOKS, NEWLINE, Source, style

_MOST_TOKENS = 5_000  # of all examples: a browser must still scroll the page
_LONGEST = 400  # letters of a token; the longest of real vocabularies have about 128
_HOW = "Point at a token, or step to it with the tab key, for p (target), q (draft) and alpha."


def styles() -> str:
    """CSS of the sources, the same as in a notebook's trace."""
    return "".join(f".{source.value}{{{style(source)}}}" for source in Source)


def examples(found: Sequence[Example]) -> Markup:
    """All of them, the first one open."""
    if not found:
        return tag("p", "No examples were kept.")
    parts = [tag("p", _HOW, class_="soft"), _legend(found)]
    left = _MOST_TOKENS
    for i, example in enumerate(found):
        shown = example.tokens[:left]
        left -= len(shown)
        tokens = count(example.num_draft_tokens, "draft token")
        where = f"{short(example.draft)}, {tokens}, temperature {degrees(example.temperature)}"
        head = f"{short(example.domain) or 'no domain'}: {where}"
        cut = len(example.tokens) - len(shown)
        parts.append(
            tag(
                "details",
                tag("summary", head),
                tag("p", f"Prompt: {short(example.prompt, 400)}", class_="soft"),
                tag("pre", *map(_token, shown), dir="auto") if shown else None,
                tag("p", f"{count(cut, 'more token')} not shown.", class_="note") if cut else None,
                None if example.tokens else tag("p", "No tokens."),
                open="" if i == 0 else None,
            )
        )
    return join(*parts)


def _legend(found: Sequence[Example]) -> Markup:
    counts = Counter(_source(token) for example in found for token in example.tokens)
    total = max(counts.total(), 1)
    entries = [
        tag(
            "li",
            tag("span", source.value, class_=source.value),
            f" {counts[source]:,} ({100 * counts[source] / total:.0f} %), {LOOKS[source][2]}",
        )
        for source in Source
    ]
    return tag("ul", *entries, class_="legend")


def _source(token: ExampleToken) -> Source:
    """A profile that was edited may name another: it is shown without a colour."""
    return Source(token.source) if token.source in {s.value for s in Source} else Source.PLAIN


def _token(token: ExampleToken) -> Markup:
    source = _source(token)
    known = [
        (name, value) for name, value in (("p", token.p), ("q", token.q), ("alpha", token.alpha)) if value is not None
    ]
    said = ", ".join([source.value, *(f"{name} {share(value)}" for name, value in known)])
    letters = token.text if len(token.text) <= _LONGEST else f"{token.text[:_LONGEST]}..."
    text = Markup(escape(clean(letters)).replace("\n", NEWLINE)) if letters else "∅"
    return tag("span", text, tag("span", said, class_="tip", role="tooltip"), class_=f"t {source.value}", tabindex="0")
