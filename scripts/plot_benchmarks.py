"""Results of `archc bench --gpu` as one picture: `plot_benchmarks.py bench_*.json > bench.svg`.

A bar is a peer's time over ours in one case, the median of the rounds, the line through it from the smallest to the
largest; the vertical line is 1, where both take the same time.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

ROW, LEFT, WIDE, RIGHT = 18, 430, 480, 60
COLOURS = {"fla": "#3b6ea5", "sdpa": "#b0702e", "transformers": "#6a8f3c"}


def bars(found: list[dict]) -> list[tuple[str, str, dict]]:
    """Case, peer, ratio."""
    return [
        (f"{result['case']}, {result['what']}", peer, ratio)
        for report in found
        for result in report["results"]
        for peer, ratio in result["ratios"].items()
    ]


def svg(found: list[dict]) -> str:
    """The picture."""
    drawn = bars(found)
    longest = max([ratio["median"] for _, _, ratio in drawn], default=1.0)
    scale = WIDE / max(longest, 2.0)
    height = (len(drawn) + 3) * ROW
    where = found[0]["surroundings"] if found else {}
    title = ", ".join(
        f"{name} {where[name]}" for name in ("device", "driver", "torch", "triton") if name in where
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDE + RIGHT}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="8" y="14">{escape(title or "no results")}</text>',
    ]
    for number, (case, peer, ratio) in enumerate(drawn):
        top = (number + 1.5) * ROW
        middle = top + ROW / 2 - 2
        width = ratio["median"] * scale
        low, high = LEFT + ratio["low"] * scale, LEFT + min(ratio["high"] * scale, WIDE + RIGHT)
        lines += [
            f'<text x="{LEFT - 6}" y="{middle + 4:.1f}" text-anchor="end">{escape(case)}: {peer}</text>',
            f'<rect x="{LEFT}" y="{top:.1f}" width="{width:.1f}" height="{ROW - 4}" '
            f'fill="{COLOURS.get(peer, "#888888")}"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke="black"/>',
            f'<text x="{LEFT + width + 4:.1f}" y="{middle + 4:.1f}">{ratio["median"]:.2f}</text>',
        ]
    lines.append(
        f'<line x1="{LEFT + scale:.1f}" x2="{LEFT + scale:.1f}" y1="{ROW}" y2="{height - ROW}" stroke="#c00000"/>'
    )
    return "\n".join([*lines, "</svg>"])


def main() -> None:
    """Print the picture of the files that are there."""
    files = [Path(file) for file in sys.argv[1:] if Path(file).is_file()]
    print(svg([json.loads(file.read_text(encoding="utf-8")) for file in files]))


if __name__ == "__main__":
    main()
