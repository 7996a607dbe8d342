"""What makes a report's page answer: films with a slider for the horizon, tables that sort.

All of it stands in the page itself.  Without scripts a film shows its first frame, and tables keep
their order.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from PIL import Image

FILES = Path(__file__).parent


def films(plots: Path) -> list[str]:
    """Embed the films of predictions, film-*.webp: all frames of each, one below the other."""
    found, most = [], 0
    for path in sorted(plots.glob("film-*.webp")):
        frames = int(path.stem.rpartition("-")[2])
        most = max(most, frames)
        with Image.open(path) as image:
            width, height = image.width, image.height // frames
        data = base64.b64encode(path.read_bytes()).decode()
        found.append(
            f'<figure><div class=film role=img aria-label="A held-out clip: truth left, model '
            f'rollout right" data-frames={frames} style="aspect-ratio: {width} / {height}; '
            f'background-image: url(data:image/webp;base64,{data})"></div>'
            f"<figcaption class=quiet>clip {len(found) + 1}: truth, rollout</figcaption></figure>"
        )
    if not found:
        return []
    return [
        '<p class=controls><button type=button id=play aria-pressed=false>Play</button>'
        f'<label>Horizon <input type=range id=horizon min=0 max={most - 1} value=0></label>'
        '<output id=ahead for=horizon></output></p>',
        f"<div class=films>{''.join(found)}</div>",
        "<p class=quiet>True frames left, model rollout right. Tables mark the horizon, too.</p>",
    ]  # fmt: skip


def whole_page(title: str, body: list[str]) -> str:
    """Give a page that needs no other file."""
    style, script = ((FILES / f"report.{kind}").read_text() for kind in ("css", "js"))
    return (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name="viewport" '
        f'content="width=device-width"><title>{escape(title)}</title><style>{style}</style>'
        f"<body><main>{''.join(body)}</main><script>{script}</script></body></html>"
    )
