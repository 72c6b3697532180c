"""DashInfer's compute units: "CPU", "CUDA:0,1" and so on."""

from collections.abc import Sequence

from ..errors import InvalidArgument, NotSupported
from .enums import TargetDevice

_ALLOWED = '"CPU", "CUDA:<number>", or several numbers after a comma'


def parse_compute_unit(unit: str) -> tuple[TargetDevice, list[int]]:
    """Kind and numbers of the devices that `unit` names; upper or lower case, number 0 where none is said.

    Raises:
        InvalidArgument: it is no such string.
    """
    if not isinstance(unit, str):
        raise InvalidArgument("compute_unit", unit, _ALLOWED)
    kind, _, numbers = unit.strip().partition(":")
    try:
        device = TargetDevice[kind.strip().upper()]
        ids = [int(number) for number in numbers.split(",") if number.strip()]
    except (KeyError, ValueError) as error:
        raise InvalidArgument("compute_unit", unit, _ALLOWED) from error
    if any(number < 0 for number in ids):
        raise InvalidArgument("compute_unit", unit, _ALLOWED)
    return device, ids or [0]


def format_compute_unit(device: TargetDevice, device_ids: Sequence[int]) -> str:
    """The string for a kind and numbers of devices; a CPU without NUMA has number 0 alone."""
    ids = [0] if device is TargetDevice.CPU else list(device_ids) or [0]
    return f"{device.name}:{','.join(map(str, ids))}"


def device_of(unit: str) -> str:
    """The engine's name of the one device that `unit` names.

    Raises:
        InvalidArgument: it is no compute unit.
        NotSupported: it names several devices, or NUMA nodes.
    """
    device, ids = parse_compute_unit(unit)
    if device is TargetDevice.CPU_NUMA or (device is TargetDevice.CPU and ids != [0]):
        raise NotSupported(
            f"compute_unit is {unit!r}: a model is not spread over NUMA nodes; allowed: CPU, CUDA:<number>"
        )
    if len(ids) > 1:
        raise NotSupported(
            f"compute_unit is {unit!r}: a model runs on one device; allowed: CPU, CUDA:<number>"
        )
    return "cpu" if device is TargetDevice.CPU else f"cuda:{ids[0]}"
