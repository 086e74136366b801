# SPDX-License-Identifier: Apache-2.0
"""The picture of a loss's pairs as an inline SVG, whose colours are in docs/site.css."""

from __future__ import annotations

from html import escape

from pycl.tools.site.pairs import BOTH, IDLE, NEGATIVE, NONE, POSITIVE, SELF, Picture

CELL, LEFT, TOP = 26, 38, 24
MEANING = {
    POSITIVE: "positive, outside of the denominator",
    BOTH: "positive, also in the denominator",
    NEGATIVE: "pushed apart, in the denominator or in a sum",
    IDLE: "compared, without weight on these points",
    SELF: "the point itself",
    NONE: "not compared",
}
SIGN = {POSITIVE: "+", BOTH: "+", NEGATIVE: "\N{MINUS SIGN}", IDLE: "\N{MIDDLE DOT}", SELF: "\N{MULTIPLICATION SIGN}"}


def figure(picture: Picture, caption: str) -> str:
    """One line of HTML: Markdown leaves it as it is."""
    width, height = LEFT + CELL * len(picture.candidates), TOP + CELL * len(picture.anchors)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [f'<svg class="pairs" {size} role="img" aria-label="{escape(f"pairs {caption}".strip())}">']
    parts += [_text(LEFT + CELL * (j + 0.5), TOP - 8, name, "name") for j, name in enumerate(picture.candidates)]
    for i, anchor in enumerate(picture.anchors):
        y = TOP + CELL * i
        parts.append(_text(LEFT / 2, y + CELL / 2, anchor, "name"))
        for j, candidate in enumerate(picture.candidates):
            state = picture.cells.get((anchor, candidate), NONE)
            parts.append(_cell(LEFT + CELL * j, y, state, f"{anchor}, {candidate}: {MEANING[state]}"))
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="pairs">{"".join(parts)}</svg>{below}</figure>'


def legend(pictures: list[Picture]) -> str:
    """What the signs mean that these pictures have."""
    there = {p.cells.get((a, c), NONE) for p in pictures for a in p.anchors for c in p.candidates}
    rows = [
        f'<span class="row"><svg class="pairs" viewBox="0 0 {CELL} {CELL}" width="{CELL}" height="{CELL}" '
        f'aria-hidden="true">{_cell(0, 0, state, "")}</svg> {meaning}</span>'
        for state, meaning in MEANING.items()
        if state in there
    ]
    return f'<div class="pairs-legend">{"".join(rows)}</div>'


def _cell(x: float, y: float, state: str, title: str) -> str:
    size = CELL - 3
    box = f'x="{x + 1.5}" y="{y + 1.5}" width="{size}" height="{size}" rx="3"'
    parts = [f'<rect class="{state or "none"}" {box}/>']
    if state == BOTH:
        x0, y0 = x + 1.5, y + 1.5
        parts.append(f'<path class="corner" d="M{x0 + size} {y0 + 10}V{y0 + size}H{x0 + 10}Z"/>')
    if state in SIGN:
        parts.append(_text(x + CELL / 2, y + CELL / 2, SIGN[state], f"sign {state}"))
    return f"<g>{f'<title>{escape(title)}</title>' if title else ''}{''.join(parts)}</g>"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'
