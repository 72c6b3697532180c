"""llama.cpp through llama-cpp-python's low-level interface: a plain loop with a lane for each request.

New requests are prefilled as soon as a lane is free, then all lanes go on by one token in one llama_decode.
With the prefix cache on, the tokens that all requests share are computed once and copied to the other lanes.
Settings: tokens_per_call, n_ubatch, unified (see `BareSetting`).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....backends.llamacpp.batch_arrays import Ints
from .bare_loop import BareLoop, BareSetting
from .protocol import Job, Load, Server, run

PACKAGES = ("llama-cpp-python", "numpy")
_SHARED_LANE = 0
"""Holds the shared tokens for as long as the model is loaded; no request is served in it."""


@dataclass(slots=True)
class _Active:
    """A request in a lane."""

    number: int
    lane: int
    length: int
    last: int


class LlamaCppServer:
    """A bare loop, and the lanes that are free."""

    def __init__(self, job: Job) -> None:
        setting = BareSetting(
            tokens_per_call=int(job.settings["tokens_per_call"]),
            n_ubatch=int(job.settings["n_ubatch"]),
            unified=bool(job.settings["unified"]),
        )
        self._shared_len = job.shared_len if job.prefix_cache else 0
        lanes = min(job.in_flight, len(job.requests))
        first = _SHARED_LANE + 1 if self._shared_len else 0
        self._free = list(range(first, first + max(lanes, len(job.warmup), len(job.earlier))))
        self._tokens_per_call = setting.tokens_per_call
        self._shared: list[int] = []
        lanes = first + len(self._free)
        self._loop = BareLoop(Path(job.model), lanes, job.max_length, job.threads, setting)

    def serve(self, load: Load) -> None:
        """See `Server`."""
        active: list[_Active] = []
        while not load.finished:
            waiting = list(load.hand_over())
            while waiting:
                active += self._prefill(load, self._take_group(load, waiting))
                active = self._without_finished(load, active)
                waiting += load.hand_over()
            active = self._step(load, active)

    def close(self) -> None:
        """See `Server`."""
        self._loop.close()

    def _take_group(self, load: Load, waiting: list[int]) -> list[int]:
        """Requests that are prefilled in one call: of one length, since llama.cpp splits unequal ones up."""
        length = len(load.requests[waiting[0]].token_ids)
        most = max(1, self._tokens_per_call // (length - self._shared_len or 1))
        group = [number for number in waiting if len(load.requests[number].token_ids) == length][:most]
        for number in group:
            waiting.remove(number)
        return group

    def _prefill(self, load: Load, group: list[int]) -> list[_Active]:
        prompts = np.asarray([load.requests[number].token_ids for number in group], np.int32)
        lanes = np.asarray([self._free.pop(0) for _ in group], np.int32)
        begin = self._copy_shared(prompts, lanes)
        rest = prompts[:, begin:]
        count, length = rest.shape
        positions = np.tile(np.arange(begin, begin + length, dtype=np.int32), count)
        outputs = positions == prompts.shape[1] - 1
        tokens = self._loop.decode(rest.reshape(-1), positions, np.repeat(lanes, length), outputs)
        active = []
        for number, lane, token in zip(group, lanes.tolist(), tokens.tolist(), strict=True):
            load.receive(number, [token])
            active.append(_Active(number, lane, prompts.shape[1], token))
        return active

    def _copy_shared(self, prompts: Ints, lanes: Ints) -> int:
        """Put the tokens that all prompts share in the lanes; how many they are."""
        if not 0 < self._shared_len < prompts.shape[1]:
            return 0
        shared = prompts[0, : self._shared_len]
        if shared.tolist() != self._shared:
            self._loop.empty(_SHARED_LANE)
            lane = np.full(len(shared), _SHARED_LANE, np.int32)
            positions = np.arange(len(shared), dtype=np.int32)
            self._loop.decode(shared, positions, lane, positions == len(shared) - 1)
            self._shared = shared.tolist()
        for lane in lanes.tolist():
            self._loop.copy(_SHARED_LANE, lane, self._shared_len)
        return self._shared_len

    def _step(self, load: Load, active: list[_Active]) -> list[_Active]:
        if not active:
            return active
        active.sort(key=lambda one: one.lane)
        tokens = self._loop.decode(
            np.asarray([one.last for one in active], np.int32),
            np.asarray([one.length for one in active], np.int32),
            np.asarray([one.lane for one in active], np.int32),
            np.ones(len(active), np.bool_),
        )
        for one, token in zip(active, tokens.tolist(), strict=True):
            load.receive(one.number, [token])
            one.length += 1
            one.last = token
        return self._without_finished(load, active)

    def _without_finished(self, load: Load, active: list[_Active]) -> list[_Active]:
        left = []
        for one in active:
            if load.receive(one.number, []):
                self._loop.empty(one.lane)
                self._free.append(one.lane)
            else:
                left.append(one)
        self._free.sort()
        return left


def load_server(job: Job) -> Server:
    """Load the GGUF file that the job names."""
    return LlamaCppServer(job)


def main() -> int:
    """The runner's program."""
    return run(load_server, PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
