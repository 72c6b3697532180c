"""Measures what quantised weights, keys and values cost in quality, against the same model without.

python -m millstream.benchmarks.quality
python -m millstream.benchmarks.quality --model DIR --num-prompts 16

Every figure comes through the engine's own interface. Perplexity is that of the right answers to questions
about the bundled model's facts; other models have no right answers and are given random prompts. The
divergence is an estimate of KL(p || q) per token, p without and q with quantisation: the mean of
log p - log q over tokens drawn from p.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from ..api.cli.options import add_engine_flags, model_config
from ..api.cli.terminal import CommandParser, command_status, counting_bar
from ..backends.bundled import BUNDLED_MODELS
from ..backends.bundled.facts import load_facts
from ..backends.bundled.phrasing import canonical_question
from ..backends.worker import KV_CACHE_DTYPES, QUANTIZATIONS, Tokenizer
from ..engine import Engine, ModelConfig, OutputStream, RequestOptions, SamplingParams
from ..errors import MillstreamError
from .datasets import plain_token_ids, random_prompts
from .environment import write_report
from .options import require_at_least

SETTINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        **{name: {"quantization": name} for name in QUANTIZATIONS[1:]},
        **{f"kv {name}": {"kv_cache_dtype": name} for name in KV_CACHE_DTYPES[1:]},
    }
)
"""What is measured unless a flag says otherwise: changes of a ModelConfig by a name for them."""
BUNDLED = "pyhelp"
"""The model whose right answers are known."""


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """One setting, against the model without it."""

    setting: str
    """Its name in SETTINGS, or what was asked for by flags."""
    weights_bytes: int
    """What the memory plan counts for weights."""
    perplexity: float | None
    """Of the right answers' tokens; None where they are not known."""
    divergence: float
    """Nats per token; 0 without quantisation."""
    equal_tokens: float
    """Share of greedy tokens that come before the first one that differs."""
    equal_outputs: float
    """Share of greedy outputs without any difference."""


class QualityReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on one model."""

    model: str
    num_prompts: int
    output_len: int
    rows: list[Quality]

    def lines(self) -> list[str]:
        """A table for people."""
        lines = [f"{'':18}{'weights':>12}{'perplexity':>12}{'divergence':>12}{'tokens':>10}{'outputs':>10}"]
        for row in self.rows:
            perplexity = "" if row.perplexity is None else f"{row.perplexity:.4f}"
            lines.append(
                f"{row.setting:18}{row.weights_bytes / 1e6:9.1f} MB{perplexity:>12}{row.divergence:12.5f}"
                f"{row.equal_tokens:10.2%}{row.equal_outputs:10.2%}"
            )
        return lines


@dataclass(frozen=True)
class Task:
    """One prompt, and the tokens of its right answer where that is known."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What one model gave: greedy outputs, and log-probabilities of right answers and of drawn tokens."""

    weights_bytes: int
    greedy: list[list[int]]
    right: list[list[float]]
    drawn: list[list[float]]


def compare(
    config: ModelConfig,
    settings: Mapping[str, Mapping[str, str]],
    *,
    num_prompts: int,
    output_len: int,
    advance: Callable[[int], None] = lambda models: None,
) -> QualityReport:
    """Measure each of `settings` on one model; `advance` is told how many more models are done.

    Args:
        config: without any quantisation.
        settings: changes of it, by a name for them.

    Raises:
        MillstreamError: the model cannot be quantised so, or a request failed.
    """
    with _running(config) as engine:
        tasks = _tasks(engine, config, num_prompts, output_len)
        draws = [
            SamplingParams(temperature=1.0, max_new_tokens=output_len, ignore_eos=True, seed=seed)
            for seed in range(len(tasks))
        ]
        drawn = _generate(engine, config, tasks, draws)
        base = _answer(engine, config, tasks, drawn, output_len)
    advance(1)
    rows = [_compare("none", base, base)]
    for name, changes in settings.items():
        changed = msgspec.structs.replace(config, **changes)
        with _running(changed) as engine:
            rows.append(_compare(name, base, _answer(engine, changed, tasks, drawn, output_len)))
        advance(1)
    return QualityReport(model=config.model, num_prompts=len(tasks), output_len=output_len, rows=rows)


def _running(config: ModelConfig) -> Engine:
    engine = Engine()
    try:
        engine.install_model(config)
        engine.start_model(config.installed_name)
    except BaseException:
        engine.close()
        raise
    return engine


def _tasks(engine: Engine, config: ModelConfig, count: int, output_len: int) -> list[Task]:
    tokenizer = engine.tokenizer(config.installed_name)
    if config.model == BUNDLED:
        facts = load_facts()
        step = max(1, len(facts) // count)
        return [_question(tokenizer, canonical_question(fact), fact.answer) for fact in facts[::step][:count]]
    vocab = plain_token_ids(tokenizer, engine.model_info(config.installed_name).vocab_size)
    prompts = random_prompts(vocab, count, input_len=64, output_len=output_len)
    return [Task(tuple(prompt.token_ids)) for prompt in prompts]


def _question(tokenizer: Tokenizer, question: str, answer: str) -> Task:
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}])
    prompt = tokenizer.encode(text, add_special_tokens=False)
    return Task(tuple(prompt), tuple(tokenizer.encode(answer, add_special_tokens=False)))


def _answer(
    engine: Engine, config: ModelConfig, tasks: Sequence[Task], drawn: Sequence[list[int]], output_len: int
) -> Answers:
    greedy = SamplingParams(temperature=0, max_new_tokens=output_len)
    return Answers(
        engine.memory_plan(config.installed_name).weights,
        _generate(engine, config, tasks, [greedy] * len(tasks)),
        _score(engine, config, [(task.prompt, task.answer) for task in tasks if task.answer]),
        _score(engine, config, [(task.prompt, tokens) for task, tokens in zip(tasks, drawn, strict=True)]),
    )


def _generate(
    engine: Engine, config: ModelConfig, tasks: Sequence[Task], params: Sequence[SamplingParams]
) -> list[list[int]]:
    streams = [_start(engine, config, task.prompt, own) for task, own in zip(tasks, params, strict=True)]
    return [_read(stream) for stream in streams]


def _score(
    engine: Engine, config: ModelConfig, pairs: Sequence[tuple[tuple[int, ...], Sequence[int]]]
) -> list[list[float]]:
    """Log-probabilities of the second part's tokens after the first one."""
    params = SamplingParams(temperature=0, max_new_tokens=1, prompt_logprobs=0)
    streams = [_start(engine, config, (*prompt, *tokens), params) for prompt, tokens in pairs]
    scores = []
    for stream, (prompt, _) in zip(streams, pairs, strict=True):
        _read(stream)
        entries = stream.prompt_logprobs[len(prompt) :]
        scores.append([entry.logprob for entry in entries if entry is not None])
    return scores


def _start(engine: Engine, config: ModelConfig, ids: Sequence[int], params: SamplingParams) -> OutputStream:
    options = RequestOptions(detokenize=False)
    handle, _ = engine.start_request(config.installed_name, list(ids), params, options)
    return handle.streams[0]


def _read(stream: OutputStream) -> list[int]:
    stream.wait_finished()
    if stream.error is not None:
        raise MillstreamError(
            f"a request of {stream.num_prompt_tokens} prompt tokens was not served: {stream.error}"
        )
    output = stream.get_nowait()
    return output.token_ids


def _compare(setting: str, base: Answers, found: Answers) -> Quality:
    pairs = list(zip(base.greedy, found.greedy, strict=True))
    right = [score for scores in found.right for score in scores]
    p = [score for scores in base.drawn for score in scores]
    q = [score for scores in found.drawn for score in scores]
    return Quality(
        setting=setting,
        weights_bytes=found.weights_bytes,
        perplexity=math.exp(-math.fsum(right) / len(right)) if right else None,
        divergence=math.fsum(a - b for a, b in zip(p, q, strict=True)) / len(p),
        equal_tokens=sum(_agreeing(a, b) for a, b in pairs) / sum(len(a) for a, _ in pairs),
        equal_outputs=sum(a == b for a, b in pairs) / len(pairs),
    )


def _agreeing(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens before the first difference."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.quality",
        description="Measure what quantisation costs in quality.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--model", default=BUNDLED, help=f"folder, hub id or bundled name: {', '.join(BUNDLED_MODELS)}")
    add("--num-prompts", type=int, default=64, metavar="N", help="prompts to answer")
    add("--output-len", type=int, default=32, metavar="N", help="tokens to generate for each")
    add("--output-json", type=Path, help="write the figures and facts of the machine here")
    add_engine_flags(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    require_at_least(options, num_prompts=1, output_len=1)
    config = model_config(options)
    plain = msgspec.structs.replace(config, quantization="none", kv_cache_dtype="auto")
    asked = SETTINGS
    if config != plain:
        changes = {"quantization": config.quantization, "kv_cache_dtype": config.kv_cache_dtype}
        asked = {f"{config.quantization}, kv {config.kv_cache_dtype}": changes}
    with counting_bar("models", 1 + len(asked)) as advance:
        measured = compare(
            plain, asked, num_prompts=options.num_prompts, output_len=options.output_len, advance=advance
        )
    for line in measured.lines():
        print(line)
    if "output_json" in options:
        write_report(options.output_json, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
