"""Token ids from whatever holds them: lists, arrays, tensors and DLPack capsules."""

import ctypes
from collections.abc import Mapping
from operator import index
from typing import Any

from ..errors import InvalidArgument

_ALLOWED = "token ids as a list, tuple, array, tensor or DLPack capsule with the shape [n] or [1, n]"


def prompt_of_inputs(inputs: Mapping[str, Any]) -> list[int]:
    """Prompt in the inputs of `start_request`, {"input_ids": …}.

    Raises:
        InvalidArgument: there are other inputs, or these are no token ids.
    """
    if not isinstance(inputs, Mapping) or set(inputs) != {"input_ids"}:
        names = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else inputs
        raise InvalidArgument("inputs", names, 'a dict with the one key "input_ids"')
    return token_ids_of(inputs["input_ids"])


def token_ids_of(value: Any) -> list[int]:
    """The ids in `value`, which is left as it is; an empty list where there are none.

    Raises:
        InvalidArgument: it is nothing that holds integers, or has another shape than [n] or [1, n].
    """
    if type(value).__name__ == "PyCapsule":
        items: Any = _read_capsule(value)
    elif hasattr(value, "tolist"):
        items = value.tolist()
    elif isinstance(value, list | tuple):
        items = list(value)
    else:
        raise InvalidArgument("input_ids", value, _ALLOWED)
    if isinstance(items, list) and len(items) == 1 and isinstance(items[0], list | tuple):
        items = list(items[0])
    if not isinstance(items, list):
        raise InvalidArgument("input_ids", value, _ALLOWED)
    try:
        return [index(item) for item in items]
    except TypeError as error:
        wrong = next(item for item in items if not hasattr(item, "__index__"))
        raise InvalidArgument("input_ids", wrong, _ALLOWED) from error


class _DLTensor(ctypes.Structure):
    """DLPack's DLTensor, with its device and its data type."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_CPU_DEVICES = (1, 3)
"""kDLCPU and kDLCUDAHost."""
_INTEGERS: dict[tuple[int, int], Any] = {(0, 32): ctypes.c_int32, (0, 64): ctypes.c_int64}
"""Element type by type code (0: signed integers) and bits."""


def _read_capsule(capsule: Any) -> list[int]:
    """The integers in a "dltensor" capsule, flat; the capsule stays unconsumed, so it can be given again."""
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    try:
        tensor = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    except ValueError as error:
        raise InvalidArgument("input_ids", capsule, "a DLPack capsule that nobody has taken over") from error
    element = _INTEGERS.get((tensor.type_code, tensor.bits))
    if tensor.device_type not in _CPU_DEVICES or element is None or tensor.lanes != 1:
        raise InvalidArgument("input_ids", capsule, "32-bit or 64-bit integers in the memory of the CPU")
    shape = tensor.shape[: tensor.ndim]
    if tensor.ndim not in (1, 2) or (tensor.ndim == 2 and shape[0] != 1):
        raise InvalidArgument("shape of input_ids", shape, "[n] or [1, n]")
    stride = tensor.strides[tensor.ndim - 1] if tensor.strides else 1
    length = shape[-1]
    if length == 0:
        return []
    start = tensor.data + tensor.byte_offset
    values = (element * ((length - 1) * stride + 1)).from_address(start)
    return [values[place * stride] for place in range(length)]
