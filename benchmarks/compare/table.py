"""The results as text for people."""

from collections.abc import Callable, Sequence
from textwrap import shorten

from .results import Figures, Row, WorkloadResult
from .workloads import LEVELS

_MEGABYTE = 1_000_000
_REASON_WIDTH = 160
_NO_CELLS = " " * 27
_COLUMNS = (
    ("engine", -34),
    ("weights", -8),
    ("requests", 9),
    ("total tok/s", 12),
    ("ours", 7),
    ("prompt tok/s", 13),
    ("output tok/s", 13),
    ("TTFT s", 8),
    ("ours", 7),
    ("ms/token", 9),
    ("ours", 7),
    ("peak MB", 8),
    ("wall s", 8),
)
"""Heading and width of each column; a negative width begins at the left."""


def table_lines(result: WorkloadResult) -> list[str]:
    """One workload: what was asked, a heading, and a line for each engine.

    "ours": how many times better Millstream is than the figure before it, on the same file where it has a row
    on that, else with weights of the same precision.
    """
    lines = [f"{result.name}: {result.description}", _line([heading for heading, _ in _COLUMNS])]
    lines += [_row_line(row) for row in result.rows]
    return lines


def level_lines(results: Sequence[WorkloadResult]) -> list[str]:
    """Tokens per second of prompts alone and of outputs alone, level by level: a peer's, and Millstream's.

    None where no peer has been measured beside Millstream at any level.
    """
    by_name = {result.name: result for result in results}
    lines = []
    for level in LEVELS:
        prefill, decode = (
            _level_cells(by_name.get(f"{kind}-{level}"), rate)
            for kind, rate in (("prefill", _prompt_rate), ("decode", _output_rate))
        )
        for heading in prefill | decode:
            cells = prefill.get(heading, _NO_CELLS) + decode.get(heading, _NO_CELLS)
            lines.append(f"{level:9}  {heading}{cells}")
    if not lines:
        return []
    return [
        f"{'':53}{'prompt tokens/s':>27}{'output tokens/s':>27}",
        f"{'sequences':9}  {'engine':34}{'weights':8}" + f"{'theirs':>10}{'ours':>9}{'ratio':>8}" * 2,
        *lines,
    ]


def _level_cells(result: WorkloadResult | None, rate: Callable[[Figures], float | None]) -> dict[str, str]:
    """Title and weights of each peer that is compared -> its rate, Millstream's, and their ratio."""
    rows = {row.name: row for row in result.rows} if result is not None else {}
    cells = {}
    for row in rows.values():
        ours = rows[row.ours].figures if row.ours is not None else None
        if row.figures is None or ours is None:
            continue
        theirs, own = rate(row.figures), rate(ours)
        if theirs is not None and own is not None:
            cells[f"{row.title:34}{row.precision:8}"] = f"{theirs:10.1f}{own:9.1f}{own / theirs:8.3f}"
    return cells


def _prompt_rate(figures: Figures) -> float:
    return figures.prompt_tokens_per_second


def _output_rate(figures: Figures) -> float | None:
    return figures.steady_output_tokens_per_second


def _row_line(row: Row) -> str:
    requests = str(row.num_requests)
    if row.num_requests < row.num_requests_of:
        requests += f" of {row.num_requests_of}"
    if row.figures is None:
        return f"{_line([row.title, row.precision, requests])}  {_one_line(row.failure or '')}"
    figures, ratios = row.figures, row.ratios
    total, ttft, step = (
        (None, None, None)
        if ratios is None
        else (ratios.total_tokens_per_second, ratios.mean_ttft_seconds, ratios.ms_per_output_token)
    )
    return _line(
        [
            row.title,
            row.precision,
            requests,
            f"{figures.total_tokens_per_second:.1f}",
            _times(total),
            f"{figures.prompt_tokens_per_second:.1f}",
            f"{figures.output_tokens_per_second:.1f}",
            f"{figures.mean_ttft_seconds:.2f}",
            _times(ttft),
            "" if figures.ms_per_output_token is None else f"{figures.ms_per_output_token:.1f}",
            _times(step),
            f"{figures.peak_rss_bytes / _MEGABYTE:.0f}",
            f"{figures.wall_seconds:.1f}",
        ]
    )


def _one_line(text: str) -> str:
    return shorten(text, _REASON_WIDTH, placeholder=" ...")


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _line(cells: list[str]) -> str:
    return "".join(
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"
        for cell, (_, width) in zip(cells, _COLUMNS, strict=False)
    )
