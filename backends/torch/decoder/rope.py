"""Rotary position embedding: frequencies as the reference implementations compute them, and their angles."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ROPE_TYPES = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "llama3"})
"""Kinds of scaling that are read."""


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotary embedding."""

    frequencies: tuple[float, ...]
    """Radians per position of each pair of elements, as float32 numbers."""
    magnitude: float
    """Factor of all sines and cosines."""


def read_rope(text: PretrainedConfig, layer_type: str | None, head_dim: int, max_length: int) -> Rope:
    """The embedding of layers of one type (None: of all layers), for sequences of up to `max_length`."""
    parameters = text.rope_parameters if layer_type is None else text.rope_parameters[layer_type]
    kind = parameters["rope_type"]
    if kind == "default":
        dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        return Rope(tuple((1.0 / parameters["rope_theta"] ** exponents).tolist()), 1.0)
    keywords = {} if layer_type is None else {"layer_type": layer_type}
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](text, seq_len=max_length, **keywords)
    return Rope(tuple(frequencies.tolist()), float(magnitude))


class RotaryTable:
    """Sines and cosines of the positions of a step, in the form that `KVStep.rotate_write` takes."""

    def __init__(self, rope: Rope, device: torch.device) -> None:
        self._frequencies = torch.tensor(rope.frequencies, dtype=torch.float32, device=device)
        self._magnitude = rope.magnitude

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 2 n] float32 of positions [T]; the first half of the sines is negated."""
        shape = len(positions), 2 * len(self._frequencies)
        cos, sin = (torch.empty(shape, device=positions.device) for _ in range(2))
        self.write(positions, cos, sin)
        return cos, sin

    def write(self, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
        """`at`, into `cos` and `sin`."""
        n = len(self._frequencies)
        angles = positions[:, None].float() * self._frequencies
        torch.cos(angles, out=cos[:, :n])
        torch.sin(angles, out=sin[:, n:])
        if self._magnitude != 1.0:
            cos[:, :n] *= self._magnitude
            sin[:, n:] *= self._magnitude
        cos[:, n:] = cos[:, :n]
        torch.neg(sin[:, n:], out=sin[:, :n])
