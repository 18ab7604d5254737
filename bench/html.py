"""Draws a report as one HTML file that needs nothing else: the issues' targets, then a screen per question. Pure.

Ratios are drawn on a logarithmic axis from a quarter to four, with the target and, where it is known, the noise.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape

from bench.judge import MET, MISSED, NOT_MEASURED, TOLD, Judged, judge, summary
from bench.model import Machine, Report, Row, Screen
from bench.targets import PROVEN

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --panel: #f6f8fa;
  --good: #1a7f37; --bad: #b3261e; --bar: #5b7fb5; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1419; --ink: #e6edf3; --soft: #9aa5b1; --line: #2d343c;
  --panel: #171d24; --good: #4ac26b; --bad: #ff7b72; --bar: #7aa2e3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main, header { max-width: 76rem; margin: auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 0; }
p, .soft { color: var(--soft); } p { margin: .3rem 0 1rem; max-width: 60rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; }
nav ul { list-style: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .5rem;
  padding: 0; }
nav a { display: flex; justify-content: space-between; gap: 1rem; padding: .45rem .7rem; background: var(--panel);
  border: 1px solid var(--line); border-radius: .4rem; color: inherit; text-decoration: none; }
nav a:hover, nav a:focus-visible { border-color: var(--bar); }
section { border-top: 1px solid var(--line); padding: 1.6rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
th, td { padding: .3rem .7rem .3rem 0; vertical-align: middle; } td { border-bottom: 1px solid var(--line); }
td a { color: var(--bar); } td.number { text-align: right; white-space: nowrap; } td.bar { min-width: 11rem; }
.yes { color: var(--good); font-weight: 700; } .no { color: var(--bad); font-weight: 700; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; margin-top: 1.2rem; }
.plots img { width: 100%; background: #fff; border: 1px solid var(--line); border-radius: .4rem; }
"""
_WIDTH, _HEIGHT = 170, 20
_SPAN = 2.0
"""Powers of two to either side of one."""


def page(report: Report, plots: Mapping[str, str]) -> str:
    """The whole file. ``plots``: SVG text by name."""
    screens = [screen for screen in report.screens if screen.rows or screen.failed]
    title = "pycni benchmarks" + (", quick run" if report.quick else "")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><header><h1>{title}</h1>{_summary(report)}"
        f'<nav aria-label="Questions"><ul>{_first(report)}{"".join(map(_link, screens))}</ul></nav></header>\n'
        f"<main>{_targets(report)}{''.join(_screen(screen, plots) for screen in screens)}</main></body></html>\n"
    )


def _summary(report: Report) -> str:
    rows = [row for screen in report.screens for row in screen.rows]
    met, missed = (sum(row.met == word for row in rows) for word in ("yes", "NO"))
    broken = sum(len(screen.failed) for screen in report.screens)
    words = f"{met} of {met + missed} rows with a target met it; {len(rows)} rows; {report.took_s / 60:.0f} minutes"
    if broken:
        words += f'; <span class="no">{broken} benchmarks broke</span>'
    parts = [("result", words), ("run", escape(f"{report.began}, {report.commit or 'no checkout'}"))]
    parts += [(name, escape(value)) for name, value in _machine(report.machine)]
    lines = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in parts)
    note = (
        "Ours and the peers' take turns in one run; a ratio is ours / peer of their medians, for rates and throughput "
        "the other way where the target says &gt;=. Only ratios compare between machines."
    )
    return f"<p>{note}</p><dl>{lines}</dl>"


def _machine(machine: Machine) -> list[tuple[str, str]]:
    return [
        ("machine", f"{machine.processor}, {machine.cores} cores, {machine.memory_gib} GiB"),
        ("system", f"{machine.system}, kernel {machine.kernel}, Python {machine.python}"),
        ("tools", ", ".join(f"{name} {version}" for name, version in machine.tools.items())),
        ("load before", f"{machine.load:.2f}"),
    ]


def _first(report: Report) -> str:
    words = [item.word for item in judge(report)]
    counts = (
        f'<span class="yes">{words.count(MET)} yes</span> <span class="no">{words.count(MISSED)} no</span>'
    )
    return f'<li><a href="#targets"><span>targets</span><span>{counts}</span></a></li>'


def _link(screen: Screen) -> str:
    missed = sum(row.met == "NO" for row in screen.rows)
    met = sum(row.met == "yes" for row in screen.rows)
    words = f'<span class="yes">{met} yes</span>' if met else '<span class="soft">reports</span>'
    if missed:
        words += f' <span class="no">{missed} no</span>'
    if screen.failed:
        words += ' <span class="no">broke</span>'
    return f'<li><a href="#{escape(screen.name)}"><span>{escape(screen.name)}</span><span>{words}</span></a></li>'


def _targets(report: Report) -> str:
    """The first screen."""
    words = ("issue", "target", "row that decides", "pycni", "ratio", "target", "met")
    body = "".join(map(_target, judge(report)))
    proven = "".join(
        f"<tr><td>{item.issue}</td><td>{escape(item.words)}</td><td>{escape(item.test)}</td></tr>"
        for item in PROVEN
    )
    return (
        f'<section id="targets"><h2>Targets</h2><p>{escape(summary(report))}</p>{_table(words, body)}'
        "<p>Shown by tests, which are no part of this run:</p>"
        f"{_table(('issue', 'target', 'test'), proven)}</section>\n"
    )


def _target(found: Judged) -> str:
    target, rows = found.target, found.rows
    met = {
        MET: '<span class="yes">yes</span>',
        MISSED: '<span class="no">no</span>',
        TOLD: '<span class="soft">told</span>',
        NOT_MEASURED: '<span class="soft">not measured in this run</span>',
    }[found.word]
    if found.word == MISSED and len(rows) > 1:
        met += f' <span class="soft">{found.missing} of {len(rows)}</span>'
    if found.word in {MET, MISSED}:
        met += _noise(rows[0])
    one = rows[0] if rows and (found.word != TOLD or len(rows) == 1) else None
    question = f"{one.question} ({len(rows)} rows)" if one and len(rows) > 1 else one.question if one else ""
    where = question or (f"{len(rows)} rows" if rows else target.file)
    link = f'<a href="#{escape(target.file)}">{escape(where)}</a>' if rows else escape(where)
    cells = (one.ours, _ratio(one), one.target) if one else ("", "", "")
    return (
        f"<tr><td>{target.issue}</td><td>{escape(target.words)}</td><td>{link}</td><td>{escape(cells[0])}</td>"
        f'<td class="number">{cells[1]}</td><td>{escape(cells[2])}</td><td>{met}</td></tr>'
    )


def _table(words: tuple[str, ...], body: str) -> str:
    head = "".join(f'<th scope="col">{word}</th>' for word in words)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _ratio(row: Row) -> str:
    ratio = "" if row.ratio is None else escape(f"{row.ratio:.2f} {row.unit}".strip())
    return ratio if row.noise is None else f"{ratio} <span class='soft'>±{row.noise * 100:.0f} %</span>"


def _screen(screen: Screen, plots: Mapping[str, str]) -> str:
    words = ("question", "pycni", "peer", "ratio", "quarter to four times", "target", "met")
    table = _table(words, "".join(map(_row, screen.rows)))
    broke = f'<p class="no">broke: {escape(", ".join(screen.failed))}</p>' if screen.failed else ""
    images = "".join(
        f'<img alt="plot {escape(name)}" src="data:image/svg+xml;base64,{_packed(plots[name])}">'
        for name in screen.plots
        if name in plots
    )
    drawn = f'<div class="plots">{images}</div>' if images else ""
    return (
        f'<section id="{escape(screen.name)}"><h2>{escape(screen.name)}</h2>'
        f'<p>{escape(screen.title)} <span class="soft">({screen.took_s:.0f} s)</span></p>{broke}'
        f"{table}{drawn}</section>\n"
    )


def _row(row: Row) -> str:
    met = {"yes": '<span class="yes">yes</span>', "NO": '<span class="no">no</span>', "-": ""}[
        row.met
    ] + _noise(row)
    return (
        f"<tr><td>{escape(row.question)}</td><td>{escape(row.ours)}</td><td>{escape(row.peer)}</td>"
        f'<td class="number">{_ratio(row)}</td><td class="bar">{_bar(row) if row.peer and not row.unit else ""}</td>'
        f"<td>{escape(row.target)}</td><td>{met}</td></tr>"
    )


def _noise(row: Row) -> str:
    return ' <span class="soft">within noise</span>' if row.within_noise else ""


def _bar(row: Row) -> str:
    """From one (equal) to the ratio, with the target as a dashed line."""
    if row.ratio is None or row.ratio <= 0:
        return ""
    here, middle = _place(row.ratio), _place(1.0)
    colour = {"yes": "var(--good)", "NO": "var(--bad)", "-": "var(--bar)"}[row.met]
    shapes = [
        f'<line x1="{middle}" y1="1" x2="{middle}" y2="{_HEIGHT - 1}" stroke="var(--soft)"/>',
        f'<rect x="{min(here, middle):.1f}" y="6" width="{abs(here - middle):.1f}" height="8" fill="{colour}" opacity=".55"/>',
        f'<circle cx="{here:.1f}" cy="10" r="4" fill="{colour}"/>',
    ]
    if row.target:
        bound = _place(float(row.target.split()[1]))
        shapes.append(
            f'<line x1="{bound:.1f}" y1="0" x2="{bound:.1f}" y2="{_HEIGHT}" stroke="var(--ink)" stroke-dasharray="3 2"/>'
        )
    if row.noise is not None:
        ends = (_place(row.ratio * max(1 - row.noise, 0.01)), _place(row.ratio * (1 + row.noise)))
        shapes.append(
            f'<line x1="{ends[0]:.1f}" y1="10" x2="{ends[1]:.1f}" y2="10" stroke="{colour}" stroke-width="2"/>'
        )
    label = f"ratio {row.ratio:.2f}" + (f", target {row.target}" if row.target else "")
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}">{"".join(shapes)}</svg>'
    )


def _place(ratio: float) -> float:
    """Where a ratio is on the axis."""
    power = min(max(math.log2(ratio), -_SPAN), _SPAN) if ratio > 0 else -_SPAN
    return 5 + (power + _SPAN) / (2 * _SPAN) * (_WIDTH - 10)


def _packed(svg: str) -> str:
    return base64.b64encode(svg.encode()).decode()
