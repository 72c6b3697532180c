"""Measures a server: `python -m millstream.benchmarks.serve --port 8000 --num-prompts 200 --request-rate 10`.

Flags, report and JSON keys are those of `vllm bench serve`, so that servers can be compared by what is known
of either. Beyond it, requests can hang up (--cancel-rate), refusals by status 429 are counted apart, and the
report says how much of a core the load generator itself used. The server can be any with OpenAI's interface;
`python -m millstream.benchmarks.serve.stub` is one without a model, to find out what this program can drive.
"""

import sys
from collections.abc import Sequence
from math import isinf
from time import localtime, strftime
from typing import TYPE_CHECKING

import msgspec

from ...api.cli.running import run_async
from ...api.cli.terminal import command_status
from ..environment import find_environment
from .flags import make_parser, require_client
from .outcome import State
from .plan import Plan, Saving, make_plan
from .report import Json, detailed_json, error_lines, report_json, report_lines, result_name

if TYPE_CHECKING:  # it needs aiohttp, which is an extra
    from .measurement import Measurement

_BUSY = 0.9
"""Share of a core from which on the load generator may be what limits the figures."""


def result_json(plan: Plan, measured: "Measurement", date: str) -> dict[str, Json]:
    """The content of the result file; `date` is the local time that goes into its name, too."""
    ramp_up = plan.arrivals.ramp_up
    made: dict[str, Json] = {
        "date": date,
        "endpoint_type": plan.backend,
        "backend": plan.backend,
        "label": plan.label,
        "model_id": measured.model,
        "tokenizer_id": measured.tokenizer,
        "num_prompts": plan.num_prompts,
        "request_rate": _finite(plan.arrivals.request_rate),
        "burstiness": _finite(plan.arrivals.burstiness),
        "max_concurrency": plan.max_concurrency,
        "cancel_rate": plan.cancellations.rate,
        "cancel_delay": plan.cancellations.delay,
    }
    if ramp_up is not None:
        made |= {
            "ramp_up_strategy": ramp_up.strategy,
            "ramp_up_start_rps": ramp_up.start,
            "ramp_up_end_rps": ramp_up.end,
        }
    made |= report_json(measured.figures)
    if plan.saving is not None:
        made |= dict(plan.saving.metadata)
        if plan.saving.detailed:
            made |= detailed_json(measured.outcomes)
    made["environment"] = msgspec.to_builtins(find_environment())
    return made


def _save(plan: Plan, saving: Saving, measured: "Measurement") -> None:
    date = strftime("%Y%m%d-%H%M%S", localtime())
    ramp_up = plan.arrivals.ramp_up
    name = saving.filename or result_name(
        plan.label,
        measured.model,
        date,
        request_rate=plan.arrivals.request_rate,
        ramp_up="" if ramp_up is None else f"{ramp_up.strategy}-{ramp_up.start:g}qps-{ramp_up.end:g}qps",
        max_concurrency=plan.max_concurrency,
    )
    saving.directory.mkdir(parents=True, exist_ok=True)
    path = saving.directory / name
    line = msgspec.json.encode(result_json(plan, measured, date)) + b"\n"
    with path.open("ab" if saving.append else "wb") as file:
        file.write(line)
    print(f"Result: {path}")


def _finite(value: float) -> float | str:
    return "inf" if isinf(value) else value


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status: 1 if no request succeeded."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    plan = make_plan(make_parser().parse_args(argv))
    require_client()
    from .measurement import measure

    measured = run_async(measure(plan))
    for line in report_lines(
        measured.figures,
        streams=plan.streams,
        max_concurrency=plan.max_concurrency,
        request_rate=plan.arrivals.request_rate,
    ):
        print(line)
    for line in error_lines(measured.outcomes):
        print(line, file=sys.stderr)
    if measured.figures.client_cpu_share > _BUSY:
        print("the load generator was busy all the time: it may be what limits the figures", file=sys.stderr)
    if plan.saving is not None:
        _save(plan, plan.saving, measured)
    wanted = any(outcome.state in (State.SUCCEEDED, State.CANCELLED) for outcome in measured.outcomes)
    return 0 if wanted else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
