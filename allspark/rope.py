"""Rotary scaling as changes of config.json."""

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidArgument, NotSupported
from .enums import RoPEScaleMethod


def rope_changes(
    config: Mapping[str, Any], method: RoPEScaleMethod, parameters: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Entries of `config` to replace so that the model's positions are scaled by `method`.

    Args:
        config: content of config.json, in the layout of transformers 4 (rope_scaling) or 5 (rope_parameters).
        parameters: the entry `rope_scaling` in the layout of transformers 4; its type is `method`.

    Raises:
        InvalidArgument: `method` is no such method, or needs a factor that is missing.
        NotSupported: NTK, or a model whose layers differ in their scaling.
    """
    if not isinstance(method, RoPEScaleMethod):
        raise InvalidArgument("method", method, f"one of {[str(member) for member in RoPEScaleMethod]}")
    if method is RoPEScaleMethod.NTK:
        raise NotSupported(
            "RoPEScaleMethod.NTK turns all positions with the length of a request, so that its cached "
            "blocks would not fit any more; allowed: YaRN, NO_SCALE"
        )
    scaling: dict[str, Any] = {"rope_type": "default"}
    if method is RoPEScaleMethod.YaRN:
        if not parameters or "factor" not in parameters:
            raise InvalidArgument("parameter_dict", parameters, "a mapping with a factor")
        kept = {key: value for key, value in parameters.items() if key != "type"}
        length = config.get("max_position_embeddings")
        scaling = {"original_max_position_embeddings": length, **kept, "rope_type": "yarn"}
    present = config.get("rope_parameters")
    if present is None:
        return {"rope_scaling": None if method is RoPEScaleMethod.NO_SCALE else scaling}
    if any(isinstance(value, Mapping) for value in present.values()):
        raise NotSupported(
            "the model's layers differ in their rotary scaling, so one for all is not supported"
        )
    lasting = ("rope_theta", "partial_rotary_factor")
    return {"rope_parameters": {**{key: present[key] for key in lasting if key in present}, **scaling}}
