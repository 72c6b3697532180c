"""Batch and StepResult: all that passes between the scheduler and a worker, as plain frozen data."""

from enum import Enum, IntEnum

import msgspec

from .sampling_params import SamplingParams


class Wants(IntEnum):
    """What a chunk wants back from the step."""

    NOTHING = 0
    TOKEN = 1
    EMBEDDING = 2


class Pooling(Enum):
    """How the last hidden states of a sequence become one vector."""

    MEAN = "mean"
    CLS = "cls"
    """The first token's."""
    LAST = "last"


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """One request's share of a step: compute `tokens` at positions start, start+1, …

    `blocks` is the whole block table: position p lives in block `blocks[p // block_size]`, at offset
    `p % block_size`. The table of a sequence only ever grows, from its start to its end.
    """

    seq: int
    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    wants: Wants


class SequenceStart(msgspec.Struct, frozen=True):
    """A sequence enters the worker under the small dense id `seq`.

    `token_ids` are all tokens known so far. The first `num_prompt_tokens` of them are the prompt; the rest
    was generated before the request was preempted or its worker was restarted.
    """

    seq: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    """Seed of the noise; always a number, also where `params.seed` is None."""
    eos_token_ids: tuple[int, ...] = ()
    """Ids that must not be produced before `min_output_tokens` tokens are."""
    min_output_tokens: int = 0
    pooling: Pooling | None = None
    """For a sequence of which an embedding is wanted; it is computed from its first token on."""
    adapter: str | None = None
    """Name of the loaded adapter that it runs under; None for the model alone."""


class Batch(msgspec.Struct, frozen=True):
    """One step for a worker. `retired` ids end first, then `started` ones begin (an id may be in both).

    A batch without chunks only ends sequences. Where `WorkerSpec.mixes_adapters` is False, all chunks run
    under the same adapter; where `chunks_prompts` is False, a chunk holds all tokens of its sequence.
    """

    chunks: tuple[Chunk, ...]
    started: tuple[SequenceStart, ...] = ()
    retired: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step, over all chunks."""
        return sum(len(chunk.tokens) for chunk in self.chunks)


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities (natural, of the model's own distribution) at one position."""

    logprob: float
    """Of the token that stands there."""
    top: tuple[tuple[int, float], ...]
    """(token id, logprob) of the most likely tokens, best first."""


class StepResult(msgspec.Struct, frozen=True):
    """What a worker gives back for a Batch.

    `token_ids[i]` answers `batch.chunks[i]` (None where it wanted nothing or failed). The mappings are by
    sequence id and hold only what was asked for. `prompt_logprobs` has one entry per prompt token computed in
    this step, None for the first token of a prompt, which nothing predicts. `errors` names sequences that
    failed alone (for example logits that are no numbers); the others are unharmed. `embeddings` answers the
    chunks that wanted one: the pooled hidden states, neither normalised nor shortened.

    `unplaced` names sequences whose chunk the worker had no room to compute: they are preempted (one that is
    alone in its batch is always placed). `lost_blocks` names blocks whose content it could not keep: nobody
    may match them any more. Both are empty where a block of the pool is a block of the worker's memory.

    `threads` is how many threads of the CPU the step took; 0 where the worker cannot tell.
    """

    token_ids: list[int | None]
    logprobs: dict[int, TokenLogprobs] = {}
    prompt_logprobs: dict[int, tuple[TokenLogprobs | None, ...]] = {}
    embeddings: dict[int, tuple[float, ...]] = {}
    errors: dict[int, str] = {}
    unplaced: frozenset[int] = frozenset()
    lost_blocks: tuple[int, ...] = ()
    threads: int = 0
