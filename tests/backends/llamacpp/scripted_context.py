"""A llama context without llama.cpp: it checks what it is given, and fails when it is told to."""

import numpy as np

from millstream.backends.llamacpp.layout import Layout

VOCAB = 32


class ScriptedContext:
    """Predicts the token after the one it reads. Implements Context over lists of tokens."""

    def __init__(self, *, streams=True, lanes=8, lane_size=64, max_tokens=24, max_rows=8, can_cut=True):
        self.layout = Layout(streams, lanes, lanes * lane_size if streams else lane_size)
        self.lane_size, self.max_tokens, self.max_rows, self.can_cut = (
            lane_size,
            max_tokens,
            max_rows,
            can_cut,
        )
        self.always_states = False
        self.lanes = [[] for _ in range(lanes)]
        self.calls = []
        """(tokens, positions, lanes, wanted) of every decode that was asked for."""
        self.kinds = []
        """Whether hidden states were wanted, of the same decodes."""
        self.code = lambda call: 0
        """llama_decode's answer to a call."""
        self.adapters = {}
        self.adapter = None
        self.switches = []
        """Adapters in the order in which they came into use."""
        self.threads = []
        """What was said, before each step, about how many threads it takes."""
        self.closed = 0
        self._read = []

    def grow(self):
        return False

    def decode(self, tokens, positions, lanes, wanted, states):
        self.calls.append((tokens, positions, lanes, wanted))
        self.kinds.append(states)
        assert len(tokens) <= self.max_rows or not states
        assert 0 < len(tokens) == len(positions) == len(lanes) <= self.max_tokens
        assert len(wanted) <= self.max_rows
        assert wanted == sorted(set(wanted))
        code = self.code(self.calls[-1])
        if code:
            return code
        for token, position, lane in zip(tokens, positions, lanes, strict=True):
            assert position == len(self.lanes[lane]) < self.lane_size, "llama.cpp wants consecutive positions"
            self.lanes[lane].append(token)
        self._read = [tokens[row] for row in wanted]
        return 0

    def use_threads(self, count):
        self.threads.append(count)

    def rows(self):
        return 9 * np.eye(VOCAB, dtype=np.float32)[[(token + 1) % VOCAB for token in self._read]]

    def copy(self, source, target, end):
        assert self.lanes[target] == []
        self.lanes[target] = self.lanes[source][:end]

    def remove(self, lane, begin):
        assert self.can_cut or begin == 0
        del self.lanes[lane][begin:]

    def use_adapter(self, name):
        assert name is None or name in self.adapters
        if name != self.adapter:
            self.adapter = name
            self.switches.append(name)

    def load_adapter(self, adapter):
        self.adapters[adapter.name] = adapter

    def unload_adapter(self, name):
        del self.adapters[name]

    def clear(self):
        for lane in self.lanes:
            lane.clear()

    def close(self):
        self.closed += 1
