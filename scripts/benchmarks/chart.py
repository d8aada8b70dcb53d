"""A chart of the medians as SVG, without a library. It brings its own background, so that it can be read on a light page and on a dark one."""

from __future__ import annotations

from xml.sax.saxutils import escape

from scripts.benchmarks.results import Bench, Case, Row, ratio
from scripts.benchmarks.tables import line, seconds, times

WIDTH, LEFT, BAR_END = 820, 200, 660
BAR, STEP = 16, 24
_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; fill: #1f2328 }
  .ground { fill: #ffffff; stroke: #d1d9e0 }
  .title { font-weight: 600; font-size: 15px }
  .small { fill: #59636e; font-size: 12px }
  .own { fill: #1a7f37 }
  .other { fill: #b7c0ca }
  .bold { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .ground { fill: #0d1117; stroke: #3d444d }
    .small { fill: #9198a1 }
    .own { fill: #3fb950 }
    .other { fill: #4b535d }
  }
"""


def chart(bench: Bench) -> str:
    """One panel a case that compares with others, one bar a contender; in each panel the slowest is as long as the panel is wide."""
    y, parts = 34, []
    parts.append(f'<text class="title" x="24" y="{y}">Time for the same work; shorter is better</text>')
    shown = [case for case in bench.cases if any(row.ok and not row.own for row in case.rows)]
    for case in shown:
        panel, y = _panel(case, y + 34)
        parts += panel
    y += 30
    for note in (
        f"Medians of runs in turns on one machine with {bench.machine['cores']} cores; the servers are on loopback, most behind a delay.",
        "× is the time compared with hostbackup's. How it was measured: docs/performance.md",
    ):
        parts.append(f'<text class="small" x="24" y="{y}">{escape(note)}</text>')
        y += 18
    y -= 18
    height = y + 22
    spoken = "; ".join(f"{case.title}: " + ", ".join(f"{row.name} {seconds(row.median)}" for row in case.rows if row.ok) for case in shown)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<title>hostbackup beside other programs</title>\n<desc>{escape(spoken)}</desc>\n<style>{_STYLE}</style>\n"
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _panel(case: Case, y: int) -> tuple[list[str], int]:
    """The case's elements from the line `y` on, and the line where they end."""
    rows = [row for row in case.rows if row.ok]
    longest = max(row.median for row in rows)
    about = f"{case.work}; {line(case)}"
    parts = [f'<text class="bold" x="24" y="{y}">{escape(case.title)}</text>', f'<text class="small" x="24" y="{y + 17}">{escape(about)}</text>']
    top = y + 28
    for row in rows:
        parts += _bar(row, top, longest, case.base)
        top += STEP
    return parts, top


def _bar(row: Row, top: int, longest: float, base: Row | None) -> list[str]:
    length = max(1.0, (BAR_END - LEFT) * row.median / longest)
    middle = top + BAR - 4
    weight = ' class="bold"' if row.own else ""
    figure = seconds(row.median) + (f"  ·  {times(ratio(row, base))}" if base and row is not base else "")
    return [
        f'<text{weight} x="{LEFT - 10}" y="{middle}" text-anchor="end">{escape(row.name)}</text>',
        f'<rect class="{"own" if row.own else "other"}" x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"/>',
        f'<text{weight} x="{LEFT + length + 8:.1f}" y="{middle}">{escape(figure)}</text>',
    ]
