"""Draws docs/rooms.svg, the picture of docs/architecture.md: python docs/rooms.py (needs matplotlib)."""

from __future__ import annotations

import pathlib

from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

# (name, what it does, x, y, width), upper rooms first; the order is tested by tests/test_imports.py.
ROOMS = [
    ("cli", "the command line", 0, 18, 12),
    ("profile", "would a draft pay, how much, with which settings", 0, 17, 12),
    ("attach", "for code that calls target.generate()", 0, 15, 8),
    ("said", "how commands end in an error", 8, 15, 4),
    ("check", "capabilities", 0, 16, 2.6),
    ("packages", "specdec cache", 2.6, 16, 2.9),
    ("indexes", "specdec index", 5.5, 16, 2.9),
    ("loading", "models and drafters by name", 8.4, 16, 3.6),
    ("generate", "the drop-in edge", 0, 14, 4),
    ("arbitrate", "bug or near-tie?", 4, 14, 4),
    ("bundled", "the pair, the prompts", 8, 14, 4),
    ("decode", "one prepared call: parts in, transformers' output out", 0, 13, 12),
    ("memory", "what earlier calls left in the cache, and what this one leaves", 0, 12, 12),
    ("inputs", "every form of a prompt, as the loop wants it", 0, 11, 12),
    ("options", "every argument: honoured, mapped or refused", 0, 10, 8),
    ("checks", "bad prompts", 8, 10, 4),
    ("loop", "propose, forward, verify, commit: the only decoding loop", 0, 9, 12),
    ("drafters", "only propose", 0, 8, 6),
    ("controller", "how many tokens to draft", 6, 8, 6),
    ("compiled", "steps as one graph, built once, kept on disk", 0, 7, 8),
    ("capabilities", "what may a model do?", 8, 7, 4),
    ("probe", "how can this model be rolled back?", 0, 6, 12),
    ("feeding", "what comes before a round's window", 0, 5, 12),
    ("state", "a call's tokens, rows and coins; what drafters may look at", 0, 4, 12),
    ("target", "one forward of one model", 0, 3, 5),
    ("recording", "scores, logits", 5, 3, 3.5),
    ("streaming", "to streamers", 8.5, 3, 3.5),
    ("sampling", "processors -> p", 0, 2, 4),
    ("stopping", "when rows end", 4, 2, 4),
    ("prompt", "embeddings, images", 8, 2, 4),
    ("verify", "acceptance, coins", 0, 1, 2.5),
    ("processors", "what is known", 2.5, 1, 2.4),
    ("window", "positions, masks", 4.9, 1, 2.4),
    ("cache", "rollback", 7.3, 1, 1.6),
    ("wrapped", "PEFT, compiled", 8.9, 1, 1.75),
    ("ranks", "shards", 10.65, 1, 1.35),
    ("errors  types  trace  stats  costs  pieces  version", "the words that all of them use", 0, 0, 12),
]
COLOURS = ["#e8eef7", "#dfe9d8", "#f5ecd9", "#f3e1e1"]


def main() -> None:
    plt.switch_backend("svg")
    plt.rcParams |= {"svg.hashsalt": "rooms", "svg.fonttype": "none"}  # the same picture gives the same file
    figure, axes = plt.subplots(figsize=(9, 11.4))
    for name, purpose, x, y, width in ROOMS:
        axes.add_patch(
            FancyBboxPatch(
                (x + 0.08, y + 0.08), width - 0.16, 0.84, boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=COLOURS[y % len(COLOURS)], edgecolor="#555555", linewidth=0.8,
            )
        )  # fmt: skip
        axes.text(x + width / 2, y + 0.62, name, ha="center", va="center", family="monospace", weight="bold", size=10)
        axes.text(x + width / 2, y + 0.32, purpose, ha="center", va="center", size=8.5, color="#333333")
    axes.annotate(
        "", xy=(12.5, 0.1), xytext=(12.5, 18.9), arrowprops={"arrowstyle": "->", "color": "#555555", "lw": 1.2}
    )
    axes.text(12.75, 9, "may import", rotation=270, va="center", size=9, color="#555555")
    axes.set(xlim=(-0.1, 13.2), ylim=(-0.1, 19.1))
    axes.axis("off")
    figure.savefig(pathlib.Path(__file__).with_name("rooms.svg"), bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
