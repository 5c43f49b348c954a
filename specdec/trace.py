"""Where every returned token came from, and its picture in a notebook."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from specdec.pieces import Pieces


class Source(enum.Enum):
    """Who chose a token.

    ACCEPTED: the draft, and the target accepted it.
    RECOVERED: the target, in place of a draft token that it rejected.
    BONUS: the target, after it had accepted a whole draft.
    PLAIN: the target, in a round without a draft; prefill is one.
    """

    ACCEPTED = "accepted"
    RECOVERED = "recovered"
    BONUS = "bonus"
    PLAIN = "plain"


# (red, green, blue), border style, words of the legend; the report of a profile looks the same. Green, orange and blue
# as Okabe and Ito chose them for colour-blind people (the blue lighter, for dark pages), and the border says the same
# without any colour. The background is mostly transparent, so that the page's own colours of text and paper stay; PLAIN
# has none, since a grey one would be the green one to those who see no green.
LOOKS = {
    Source.ACCEPTED: ("0,158,115", "solid", "drafted, accepted by the target"),
    Source.RECOVERED: ("213,94,0", "dashed", "the target's own after a rejection"),
    Source.BONUS: ("38,139,210", "double", "the target's own after a whole draft"),
    Source.PLAIN: ("128,128,128", "dotted", "no draft"),
}
# MathJax takes dollar signs for formulas, except in elements of these classes and in <pre>.
_OPEN = '<div class="tex2jax_ignore mathjax_ignore" style="line-height:1.7">'
_PRE = "white-space:pre-wrap;overflow-wrap:anywhere;background:none;color:inherit;border:0;padding:0;margin:.4em 0"
NEWLINE = '<span aria-hidden="true" style="opacity:.45;user-select:none">↵</span>\n'
# A browser drops or changes most control characters; their pictures are seen.
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}


@dataclass(slots=True)
class Trace:
    """The returned tokens of one call, each with its source.

    Notebooks show it in colour: `out.speculation.trace` as the last line of a cell.

    Args:
        tokens: one list per request of the user's batch, new tokens only.
        sources: of the same lengths.
        tokenizer: a PreTrainedTokenizerBase to show text with; None shows token ids.

    Example:
        >>> trace = Trace.empty(1)
        >>> trace.record(0, [5, 7, 9], num_accepted=2, num_drafted=4)
        >>> [source.name for source in trace.sources[0]]
        ['ACCEPTED', 'ACCEPTED', 'RECOVERED']
    """

    tokens: list[list[int]]
    sources: list[list[Source]]
    tokenizer: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def empty(cls, batch_size: int) -> Trace:
        """Nothing returned yet."""
        return cls([[] for _ in range(batch_size)], [[] for _ in range(batch_size)])

    def record(self, request: int, tokens: Sequence[int], num_accepted: int, num_drafted: int) -> None:
        """Appends what one round gave one request.

        Args:
            request: index in the user's batch.
            tokens: the accepted draft tokens and the target's own one, or a prefix of them (cut at EOS, length).
            num_accepted: draft tokens that the target accepted, those that were cut off included or not.
            num_drafted: draft tokens of this row, 0 without a draft.

        Raises:
            ValueError: more accepted than drafted, or more tokens than a round can give.
        """
        if not 0 <= num_accepted <= num_drafted or len(tokens) > num_accepted + 1:
            raise ValueError(
                f"no round gives {len(tokens)} tokens with {num_accepted} of {num_drafted} draft tokens accepted."
            )
        own = Source.RECOVERED if num_accepted < num_drafted else Source.BONUS if num_drafted else Source.PLAIN
        self.tokens[request].extend(tokens)
        self.sources[request].extend(Source.ACCEPTED if i < num_accepted else own for i in range(len(tokens)))

    def truncate(self, request: int, length: int) -> None:
        """Forgets a request's tokens from the length-th on; one that is no longer than that stays as it is."""
        del self.tokens[request][max(length, 0) :]
        del self.sources[request][max(length, 0) :]

    def counts(self) -> dict[Source, int]:
        """Tokens of each source, all requests together; sources without tokens count 0."""
        return {source: sum(row.count(source) for row in self.sources) for source in Source}

    def to_html(self, tokenizer: Any = None) -> str:
        """The tokens in colour, below a legend: HTML that needs no other file, for light and dark pages.

        Args:
            tokenizer: a PreTrainedTokenizerBase; if omitted the trace's own. Without any, token ids are shown.
        """
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        parts = [_OPEN, self._legend()]
        if tokenizer is None:
            parts.append('<div style="opacity:.7">Token ids: pass tokenizer= to generate() to see text.</div>')
        for request in range(len(self.tokens)):
            if len(self.tokens) > 1:
                parts.append(f'<div style="opacity:.7;margin-top:.8em">request {request}</div>')
            spans = self._ids(request) if tokenizer is None else self._texts(request, tokenizer)
            parts.append(f'<pre style="{_PRE}">{"".join(spans)}</pre>')
        return "".join([*parts, "</div>"])

    def _repr_html_(self) -> str:
        return self.to_html()

    def _legend(self) -> str:
        counts = self.counts()
        total = max(sum(counts.values()), 1)
        entries = []
        for source, count in counts.items():
            words = f"{count} ({100 * count / total:.0f} %), {LOOKS[source][2]}"
            entries.append(
                f'<span style="display:inline-block;margin-right:1.5em">'
                f'<span style="{style(source)}">{source.value}</span> {escape(words)}</span>'
            )
        return f"<div>{''.join(entries)}</div>"

    def _ids(self, request: int) -> Iterator[str]:
        for token, source in zip(self.tokens[request], self.sources[request], strict=True):
            yield _span(str(token), [token], [source]) + " "

    def _texts(self, request: int, tokenizer: Any) -> Iterator[str]:
        """A span per token; tokens whose text is incomplete share one with those that complete it."""
        pieces = Pieces(tokenizer)
        tokens, sources = self.tokens[request], self.sources[request]
        begin = 0
        for end, token in enumerate(tokens, start=1):
            text = pieces.add(token)
            if text is None and end == len(tokens):
                text = pieces.flush()
            if text is not None:
                yield _span(text, tokens[begin:end], sources[begin:end])
                begin = end


def style(source: Source) -> str:
    """CSS of a piece of text: its colour behind, its border below."""
    colour, line, _ = LOOKS[source]
    opacity = 0 if source is Source.PLAIN else 0.25
    width = 4 if line == "double" else 2  # thinner ones would show one line
    return f"background:rgba({colour},{opacity});border-bottom:{width}px {line} rgb({colour});margin-right:1px"


def _span(text: str, tokens: list[int], sources: list[Source]) -> str:
    """One piece of text, in the look of its last token."""
    title = " + ".join(f"{s.value}, token {t}" for t, s in zip(tokens, sources, strict=True))
    shown = escape(text.translate(CONTROLS)).replace("\n", NEWLINE)
    return f'<span title="{title}" style="{style(sources[-1])}">{shown}</span>'
