"""All of a benchmark in one HTML file: tables, figures and images inside it, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape

from .grid import Cell, Grid
from .store import Record, describe
from .table import ALL, HEADLINE, Row, full_table, legend, overview

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; color: #20242a; background: #fff;
       margin: 0 auto; max-width: 1280px; padding: 1.5rem 2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; } p { max-width: 75ch; } .faint { color: #5c6673; }
.wide { display: inline-block; max-width: 100%; overflow: auto; max-height: 80vh;
        border: 1px solid #d9dde3; border-radius: 4px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eceef1; }
th { white-space: normal; vertical-align: bottom; position: sticky; top: 0; background: #f5f6f8;
     font-weight: 600; z-index: 1; }
td.name, th.name { text-align: left; } tr.first td { border-top: 2px solid #c4cad3; } td.error { color: #a3122a; }
td.key, th.key { position: sticky; left: 0; background: #fff; } th.key { background: #f5f6f8; z-index: 2; }
td.text { text-align: left; white-space: normal; min-width: 30ch; }
img { max-width: 100%; height: auto; display: block; } img.dark { background: #0b0d10; border-radius: 4px; }
figure { margin: .8rem 0; } figcaption { color: #5c6673; font-size: 13px; margin-top: .3rem; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
pre { background: #f5f6f8; padding: .8rem; overflow: auto; font-size: 12px; border-radius: 4px; max-height: 60vh; }
"""


def html(
    grid: Grid,
    records: Mapping[Cell, Record],
    rows: Sequence[Row],
    *,
    figures: Mapping[str, bytes],
    captions: Mapping[str, str],
    images: Mapping[tuple[str, str, float], bytes],
) -> str:
    """The report.

    Parameters
    ----------
    figures, captions : title -> PNG, and what it shows.
    images : (file, mask, acceleration) -> JPEG.
    """
    failures = {cell: record for cell, record in records.items() if record["error"] is not None}
    pooled = [row for row in rows if row.file == ALL]
    parts = [
        f"<h1>Benchmark</h1><p class='faint'>{_subtitle(grid, records, len(failures))}</p>",
        f"<h2>{HEADLINE.title}</h2>",
        "<p>Means over files, slices and seeds; the best of each column is bold.</p>",
        _table(*overview(grid, pooled), names=1, shade=True),
        *(
            f"<h2>{escape(title)}</h2><figure><img src='{_inline(content, 'png')}' alt='{escape(title)}'>"
            f"<figcaption>{escape(captions[title])}</figcaption></figure>"
            for title, content in figures.items()
        ),
        f"<h2>Every figure</h2><p>{escape(legend(grid))}</p>",
        _table(*full_table(pooled), names=3, group=2),
        _images(images),
        _failures(failures),
        "<h2>What was asked</h2>",
        f"<pre>{escape(json.dumps(describe(grid), indent=1))}</pre>",
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Benchmark: {escape(', '.join(source.name for source in grid.files))}</title>"
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _subtitle(grid: Grid, records: Mapping[Cell, Record], failures: int) -> str:
    done = [record for record in records.values() if record["error"] is None]
    dates = sorted(record["date"] for record in done)
    versions = done[0]["versions"] if done else {}
    return escape(
        f"{', '.join(source.name for source in grid.files)}: {len(grid.methods)} methods, {len(grid.masks)} masks, "
        f"{len(grid.accelerations)} accelerations, {grid.seeds} seed{'s' * (grid.seeds > 1)}; {len(records)} cells, "
        f"{failures} failed. "
        + (f"{' to '.join(dict.fromkeys((dates[0][:10], dates[-1][:10])))}. " if done else "")
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )


def _table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, names: int, group: int = 0, shade: bool = False
) -> str:
    """The first `names` columns are texts, the last of them stays in sight.

    Parameters
    ----------
    group : a rule stands wherever the first so many entries change.
    shade : numbers darker from the least of their column to its greatest.
    """

    def cell(tag: str, text: str, column: int, darkness: float = 0.0) -> str:
        kind = "name key" if column == names - 1 else "name" if column < names else "error" if text == "failed" else ""
        bold = re.fullmatch(r"\*\*(.*)\*\*", text)
        content = f"<b>{escape(bold[1])}</b>" if bold else escape(text)
        style = f" style='background: rgba(0, 114, 178, {darkness:.2f})'" if darkness else ""
        return f"<{tag} class='{kind}'{style}>{content}</{tag}>"

    depths = _depths(lines) if shade else {}
    body = []
    for i, line in enumerate(lines):
        rule = " class='first'" if group and i > 0 and line[:group] != lines[i - 1][:group] else ""
        entries = (cell("td", text, c, depths.get((i, c), 0.0)) for c, text in enumerate(line))
        body.append(f"<tr{rule}>{''.join(entries)}</tr>")
    head = "".join(cell("th", text, c) for c, text in enumerate(header))
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def _depths(lines: Sequence[Sequence[str]]) -> dict[tuple[int, int], float]:
    """(line, column) -> 0 for the least number of a column to 0.3 for its greatest."""
    depths: dict[tuple[int, int], float] = {}
    for c, column in enumerate(zip(*lines, strict=True)):
        texts = {i: text.strip("*") for i, text in enumerate(column)}
        numbers = {i: float(text) for i, text in texts.items() if re.fullmatch(r"-?\d+(\.\d+)?", text)}
        low, high = min(numbers.values(), default=0.0), max(numbers.values(), default=0.0)
        depths |= {(i, c): 0.3 * (x - low) / (high - low) for i, x in numbers.items() if high > low}
    return depths


def _images(images: Mapping[tuple[str, str, float], bytes]) -> str:
    if not images:
        return ""
    parts = [
        "<h2>Images</h2><p>The middle slice of each file under the mask of seed 0, with PSNR and SSIM, both scaled "
        "and in the object. Errors are absolute, in one window with the standard deviations.</p>"
    ]
    for i, (file, mask) in enumerate(dict.fromkeys((file, mask) for file, mask, _ in images)):
        shown = {a: content for (f, m, a), content in images.items() if (f, m) == (file, mask)}
        body = "".join(
            f"<h3>×{a:g}</h3><img class='dark' loading='lazy' src='{_inline(content, 'jpeg')}' "
            f"alt='{escape(file)}, {escape(mask)}, acceleration {a:g}'>"
            for a, content in shown.items()
        )
        parts.append(f"<details{' open' * (i == 0)}><summary>{escape(file)}, {escape(mask)}</summary>{body}</details>")
    return "".join(parts)


def _failures(failures: Mapping[Cell, Record]) -> str:
    if not failures:
        return ""
    lines = "".join(
        f"<tr><td class='name'>{escape(cell.name)}</td><td class='text'>{escape(record['error']['type'])}: "
        f"{escape(record['error']['message'])}</td></tr>"
        for cell, record in failures.items()
    )
    return (
        "<h2>Failed cells</h2><div class='wide'><table><thead><tr><th class='name'>cell</th>"
        f"<th class='name'>error</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
