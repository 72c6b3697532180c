"""One measurement of a server, from a plan to its figures."""

import aiohttp
import msgspec
import numpy as np

from ...api.cli.terminal import counting_bar
from .arrivals import arrival_times, cancel_delays
from .client import Call, Client
from .endpoints import Wish, encode_body
from .load import Run, drive, first_model, http_session, wait_until_ready, warm_up
from .outcome import Outcome
from .plan import Plan
from .prompts import Ask, Form, make_asks
from .statistics import Figures, compute_figures
from .tokenizers import KnownTokenizer, find_tokenizer, load_tokenizer


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what was asked of whom, and what came of it."""

    model: str
    """As the server calls it."""
    tokenizer: str | None
    """Name of the model whose tokenizer made the prompts."""
    outcomes: list[Outcome]
    figures: Figures


async def measure(plan: Plan) -> Measurement:
    """Carry out a plan.

    Raises:
        InvalidArgument: the prompts cannot be made as asked.
        MillstreamError: the server names no model, or is not ready in time.
    """
    async with http_session(plan.headers, timeout=plan.request_timeout, verify=plan.verify) as session:
        names = await _model_names(plan, session)
        known = load_tokenizer(plan.tokenizer) if plan.tokenizer else find_tokenizer(reversed(names))
        model = plan.served_model_name or names[0]
        run = await _send_all(plan, session, model, _asks(plan, known))
    return Measurement(
        model=model,
        tokenizer=None if known is None else known.name,
        outcomes=run.outcomes,
        figures=compute_figures(
            run.outcomes,
            metrics=plan.metrics,
            percentiles=plan.percentiles,
            objectives=plan.objectives,
            client_cpu_seconds=run.cpu_seconds,
        ),
    )


async def _model_names(plan: Plan, session: aiohttp.ClientSession) -> list[str]:
    """What requests call the model, and after it what else it is known by."""
    if plan.model:
        return [plan.model]
    listed = await first_model(session, plan.base_url, plan.ready_timeout)
    return [listed.id] if listed.root is None else [listed.id, listed.root]


def _asks(plan: Plan, known: KnownTokenizer | None) -> list[Ask]:
    as_text = known is not None or not plan.makes_up_prompts
    form = plan.form or Form(as_text=as_text, chat=False)
    return make_asks(plan.dataset, plan.num_prompts, form, known, vocab_size=plan.vocab_size, seed=plan.seed)


async def _send_all(plan: Plan, session: aiohttp.ClientSession, model: str, asks: list[Ask]) -> Run:
    """The requests that count, after those that find out whether the server is ready and warm it up."""
    rng = np.random.default_rng(plan.seed)
    times = arrival_times(len(asks), plan.arrivals, rng)
    delays = cancel_delays(len(asks), plan.cancellations, rng)
    wish = Wish(model=model, ignore_eos=plan.ignore_eos, extra=plan.extra_body)
    calls = [
        Call(
            body=encode_body(plan.backend, ask, wish),
            request_id=f"{plan.request_id_prefix}{index}",
            prompt_len=ask.prompt_len,
            cancel_after=delay,
        )
        for index, (ask, delay) in enumerate(zip(asks, delays, strict=True))
    ]
    keep_text = plan.saving is not None and plan.saving.detailed
    client = Client(session, plan.url, plan.backend, keep_text=keep_text)
    trial = msgspec.structs.replace(calls[0], cancel_after=None, request_id=f"{plan.request_id_prefix}trial")
    if plan.ready_timeout > 0:
        await wait_until_ready(client, trial, plan.ready_timeout)
    await warm_up(client, trial, plan.num_warmups, plan.max_concurrency)

    if plan.quiet:
        return await drive(client, calls, times, plan.max_concurrency)
    with counting_bar("requests", len(calls)) as advance:
        return await drive(client, calls, times, plan.max_concurrency, advance)
