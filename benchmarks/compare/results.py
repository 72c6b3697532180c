"""Figures of the measurements, and how Millstream's compare with a peer's."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median

import msgspec

from ...errors import MillstreamError
from .peers import Peer
from .runners.protocol import Outcome, Setting
from .workloads import Workload


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Rates count from the first request's being handed over to the last token of all."""

    wall_seconds: float
    total_tokens_per_second: float
    """Prompt and output; tokens found in a prefix cache count, since the caller asked for them."""
    prompt_tokens_per_second: float
    output_tokens_per_second: float
    mean_ttft_seconds: float
    """From a request's being handed over to its first token; the mean over the requests."""
    ms_per_output_token: float | None
    """Between the first and the last token of a request; the mean over the requests.

    None where no request has two tokens."""
    steady_output_tokens_per_second: float | None
    """From the moment when every request had its first token to the first one's end.

    None where some request has no two tokens in between."""
    peak_rss_bytes: int
    load_seconds: float


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """How many times better Millstream is; above 1 it is ahead."""

    total_tokens_per_second: float
    mean_ttft_seconds: float
    ms_per_output_token: float | None
    steady_output_tokens_per_second: float | None
    peak_rss_bytes: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One engine on one workload."""

    name: str
    title: str
    precision: str
    num_requests: int
    """How many it was given."""
    num_requests_of: int
    """How many the workload has."""
    settings: dict[str, Setting]
    failure: str | None = None
    """Why there are no figures."""
    figures: Figures | None = None
    """Medians over the runs."""
    runs: list[Figures] = []
    ours: str | None = None
    """Name of the Millstream row it is compared with."""
    ratios: Ratios | None = None
    same_first_tokens: float | None = None
    """Share of the requests whose first token is that of Millstream's row."""
    versions: dict[str, str] = {}


class WorkloadResult(msgspec.Struct, frozen=True, kw_only=True):
    """All engines on one workload."""

    name: str
    description: str
    rows: list[Row]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured."""

    shape: str
    threads: int
    runs: int
    command: list[str]
    workloads: list[WorkloadResult]


def figures_of(workload: Workload, outcome: Outcome) -> Figures:
    """The figures of one run that did not fail.

    Raises:
        MillstreamError: a request got another number of tokens than it asked for.
    """
    for number, (asked, answer) in enumerate(zip(workload.requests, outcome.answers, strict=True)):
        if len(answer.token_ids) != asked.output_len:
            raise MillstreamError(
                f"request {number} got {len(answer.token_ids)} tokens, but asked for {asked.output_len}"
            )
    prompt = sum(len(asked.token_ids) for asked in workload.requests)
    output = sum(asked.output_len for asked in workload.requests)
    seconds = outcome.wall_seconds
    steps = [
        (answer.last - answer.first) / (len(answer.token_ids) - 1)
        for answer in outcome.answers
        if len(answer.token_ids) > 1
    ]
    return Figures(
        wall_seconds=seconds,
        total_tokens_per_second=(prompt + output) / seconds,
        prompt_tokens_per_second=prompt / seconds,
        output_tokens_per_second=output / seconds,
        mean_ttft_seconds=fmean(answer.first - answer.handed_over for answer in outcome.answers),
        ms_per_output_token=1000 * fmean(steps) if steps else None,
        steady_output_tokens_per_second=steady_rate([answer.moments for answer in outcome.answers]),
        peak_rss_bytes=outcome.peak_rss_bytes,
        load_seconds=outcome.load_seconds,
    )


def steady_rate(moments: Sequence[Sequence[float]]) -> float | None:
    """Tokens per second of all requests together while every one of them was being answered.

    Each request's rate is that of its own tokens in that time: those of one step come one after the other, so
    that tokens counted from one request's moment to another's would leave some of the last step out.

    Args:
        moments: when each token of each request came.
    """
    begin, end = max(times[0] for times in moments), min(times[-1] for times in moments)
    rate = 0.0
    for times in moments:
        inside = [time for time in times if begin <= time <= end]
        if len(inside) < 2 or inside[-1] <= inside[0]:
            return None
        rate += (len(inside) - 1) / (inside[-1] - inside[0])
    return rate


def medians(runs: Sequence[Figures]) -> Figures:
    """Each figure's median over the runs."""
    return Figures(
        wall_seconds=median(run.wall_seconds for run in runs),
        total_tokens_per_second=median(run.total_tokens_per_second for run in runs),
        prompt_tokens_per_second=median(run.prompt_tokens_per_second for run in runs),
        output_tokens_per_second=median(run.output_tokens_per_second for run in runs),
        mean_ttft_seconds=median(run.mean_ttft_seconds for run in runs),
        ms_per_output_token=_median([run.ms_per_output_token for run in runs]),
        steady_output_tokens_per_second=_median([run.steady_output_tokens_per_second for run in runs]),
        peak_rss_bytes=int(median(run.peak_rss_bytes for run in runs)),
        load_seconds=median(run.load_seconds for run in runs),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def ratios(ours: Figures, theirs: Figures) -> Ratios:
    """How many times better ours are."""
    return Ratios(
        total_tokens_per_second=ours.total_tokens_per_second / theirs.total_tokens_per_second,
        mean_ttft_seconds=theirs.mean_ttft_seconds / ours.mean_ttft_seconds,
        ms_per_output_token=_quotient(theirs.ms_per_output_token, ours.ms_per_output_token),
        steady_output_tokens_per_second=_quotient(
            ours.steady_output_tokens_per_second, theirs.steady_output_tokens_per_second
        ),
        peak_rss_bytes=theirs.peak_rss_bytes / ours.peak_rss_bytes,
    )


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def make_row(peer: Peer, workload: Workload, num_requests_of: int, outcomes: Sequence[Outcome]) -> Row:
    """The row of a peer that was given `workload`; the last of its `outcomes` may have failed."""
    row = Row(
        name=peer.name,
        title=peer.title,
        precision=peer.precision,
        num_requests=len(workload.requests),
        num_requests_of=num_requests_of,
        settings=peer.settings,
        failure="not measured",
    )
    for outcome in outcomes:
        if outcome.failure is not None:
            return msgspec.structs.replace(row, failure=outcome.failure)
    try:
        runs = [figures_of(workload, outcome) for outcome in outcomes]
    except MillstreamError as error:
        return msgspec.structs.replace(row, failure=str(error))
    return msgspec.structs.replace(
        row, failure=None, figures=medians(runs), runs=runs, versions=outcomes[-1].versions
    )


def compare_rows(
    rows: Sequence[Row], ours: Mapping[str, str], first_tokens: Mapping[str, list[int]]
) -> list[Row]:
    """The rows with ratios.

    Args:
        ours: name of a row -> Millstream's row that it is compared with.
        first_tokens: name -> first token of each request that the row was given.
    """
    by_name = {row.name: row for row in rows}
    compared = []
    for row in rows:
        mine = by_name.get(ours.get(row.name, ""))
        if row.figures is None or mine is None or mine.figures is None:
            compared.append(row)
            continue
        pairs = list(zip(first_tokens[row.name], first_tokens[mine.name], strict=False))
        compared.append(
            msgspec.structs.replace(
                row,
                ours=mine.name,
                ratios=ratios(mine.figures, row.figures),
                same_first_tokens=fmean(theirs == own for theirs, own in pairs),
            )
        )
    return compared
