"""The results as text for people."""

from textwrap import shorten

from .results import Row, WorkloadResult

_MEGABYTE = 1_000_000
_REASON_WIDTH = 160
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

    "ours": how many times better Millstream's row of the same weights is than the figure before it.
    """
    lines = [f"{result.name}: {result.description}", _line([heading for heading, _ in _COLUMNS])]
    lines += [_row_line(row) for row in result.rows]
    return lines


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
