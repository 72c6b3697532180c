"""Settings of quantised weights, read from a model's configuration or given by a program."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, NoReturn

from ...errors import InvalidArgument, NotSupported

_BITS = {"int8": 8, "uint8": 8, "fp8_e4m3": 8, "int4": 4, "uint4": 4}
_ENGINE = {"int8": "int8", "uint8": "int8", "int4": "int4", "uint4": "int4"}
"""The engine's quantisation by the format of weights."""
_ACTIVATIONS = ("float32", "bfloat16", "int8")
INT4_GROUP = 32
"""Inputs that share a scale in the engine's 4-bit weights."""
_ACTIVATION_FORMATS = ("int8", "fp8_e4m3")


class SubChannel(Enum):
    """How a row of weights is split into groups."""

    TPSplit = "TPSplit"
    ContinuousSplit = "CPContinuousSplit"


class SignType(Enum):
    """Whether quantised weights have a sign."""

    AUTO = "AutoSign"
    Signed = "Signed"
    Unsigned = "Unsigned"


class QuantComputeMode:
    """Whether products are computed in the weights' format, too."""

    WeightOnly = "weight_only"
    ActivateQuant = "activate_quant"


class QuantizationSettings:
    """What all methods have in common."""

    group_size: int = -1
    weight_bits: int = 8
    weight_sign: SignType = SignType.AUTO
    desc_act: bool = False
    sym: bool = True
    quant_compute_mode: str = QuantComputeMode.WeightOnly

    def __init__(self, quant_config: Mapping[str, Any]) -> None:
        self.quant_config = dict(quant_config)
        self.group_size = quant_config.get("group_size", -1)

    @staticmethod
    def from_hf_config(config_dict: Mapping[str, Any]) -> "QuantizationSettings":
        """Settings of the method that `quant_method` names."""
        return get_quant_settings_cls(config_dict.get("quant_method", ""), config_dict)

    def get_name(self) -> str:
        """Name of the method."""
        raise NotImplementedError("get_name")

    def get_weight_bits(self) -> int:
        """Bits of a weight."""
        return self.weight_bits

    def get_group_num(self) -> int:
        """Weights that share a scale; -1 for a whole channel."""
        return self.group_size

    def get_group_settings(self) -> dict[str, int] | None:
        """Group sizes by a regular expression on the weight's name, the special ones first."""
        settings: dict[str, int] | None = self.quant_config.get("group_settings")
        return settings

    def get_subchannel_method(self) -> SubChannel:
        """How a channel is split."""
        return SubChannel.ContinuousSplit

    def get_activate_data_setting(self) -> str:
        """Format of activations where they are quantised."""
        return str(self.quant_config.get("activate_format", "int8"))

    def is_quant_symmetric(self) -> bool:
        """Whether the scale has no offset."""
        return self.sym

    def guess_weight_data_type(self) -> str:
        """Format of the weights by their bits."""
        return "int8" if self.weight_bits == 8 else "uint4"

    def engine_quantization(self) -> str:
        """The engine's name for what these settings ask for.

        Raises:
            NotSupported: the engine does not do it.
        """
        raise NotSupported(
            f"the method {self.get_name()!r} is not supported: such files' integers are not read; allowed: "
            "instant_quant over weights that are not quantised yet"
        )

    def get_support_status(self, activation_data_type: str, weight_data_type: str) -> bool:
        """Whether the engine can do it with activations and weights in these formats."""
        try:
            wanted = self.engine_quantization()
        except NotSupported:
            return False
        return activation_data_type in _ACTIVATIONS and _ENGINE.get(weight_data_type) == wanted

    def to_as_quant_config(self, activation_data_type: str, weight_data_type: str | None = None) -> NoReturn:
        """Raises NotSupported."""
        raise NotSupported(
            f"there is no file of operators to be changed for weights in "
            f"{weight_data_type or self.guess_weight_data_type()} and activations in {activation_data_type}; "
            "`serialize` with enable_quant quantises"
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(group_size={self.group_size}, weight_bits={self.weight_bits}, "
            f"desc_act={self.desc_act}, sym={self.sym})"
        )


class GPTQSettings(QuantizationSettings):
    """Settings of a checkpoint quantised by GPTQ."""

    def __init__(self, quant_config: Mapping[str, Any]) -> None:
        """Raises InvalidArgument for other methods and for bits that GPTQ does not have."""
        super().__init__(quant_config)
        _require(quant_config, "quant_method", ("gptq",))
        _require(quant_config, "bits", (4, 8))
        _require(quant_config, "desc_act", (False, None))
        self.weight_bits = quant_config["bits"]
        self.sym = quant_config.get("sym", True)
        if "weight_sign" in quant_config:
            self.weight_sign = SignType.Signed if quant_config["weight_sign"] else SignType.Unsigned

    def get_name(self) -> str:
        """ "gptq"."""
        return "gptq"


class IQSettings(QuantizationSettings):
    """Settings of weights that are quantised while they are loaded."""

    def __init__(self, quant_config: Mapping[str, Any]) -> None:
        """Raises InvalidArgument for other methods and for formats that do not fit together."""
        super().__init__(quant_config)
        _require(quant_config, "quant_method", ("instant_quant",))
        _require(quant_config, "weight_format", tuple(_BITS))
        modes = (QuantComputeMode.WeightOnly, QuantComputeMode.ActivateQuant)
        _require(quant_config, "compute_method", (None, *modes))
        self.quant_compute_mode = quant_config.get("compute_method") or QuantComputeMode.WeightOnly
        weight_only = self.quant_compute_mode == QuantComputeMode.WeightOnly
        if not weight_only:
            _require(quant_config, "weight_format", _ACTIVATION_FORMATS)
        self.weight_format: str = quant_config["weight_format"]
        self.weight_bits = _BITS[self.weight_format]
        self.weight_sign = SignType.Unsigned if self.weight_format.startswith("uint") else SignType.Signed
        self.sym = not weight_only

    def get_name(self) -> str:
        """ "instant_quant"."""
        return "instant_quant"

    def engine_quantization(self) -> str:
        """int8 or int4, by the weights' format. Activations take 8 bits in both, whatever `compute_method`.

        Weights of 8 bits have one scale per output channel; those of 4 bits one per 32 inputs, which is at
        least as fine as any group that DashInfer has.

        Raises:
            NotSupported: another format, or groups of 8-bit weights.
        """
        quantization = _ENGINE.get(self.weight_format)
        if quantization is None:
            raise NotSupported(f"weight_format is {self.weight_format!r}; allowed: {', '.join(_ENGINE)}")
        if self.get_group_settings():
            raise NotSupported("group_settings are not supported: all layers are quantised alike")
        if quantization == "int8" and self.group_size != -1:
            raise NotSupported(
                f"group_size is {self.group_size}: 8-bit weights have a scale per output channel; allowed: -1"
            )
        if quantization == "int4" and self.group_size != -1 and self.group_size < INT4_GROUP:
            raise NotSupported(
                f"group_size is {self.group_size}; allowed: -1, or {INT4_GROUP} and more for 4-bit weights"
            )
        return quantization


def get_quant_settings_cls(method: str, quant_cfg: Mapping[str, Any] | None = None) -> QuantizationSettings:
    """Settings of the method called gptq, iq or instant_quant.

    Raises:
        InvalidArgument: there is no such method, or the settings contradict each other.
    """
    kinds = {"gptq": GPTQSettings, "iq": IQSettings, "instant_quant": IQSettings}
    if method not in kinds:
        raise InvalidArgument("quant_method", method, f"one of {sorted(kinds)}")
    return kinds[method](quant_cfg or {})


def _require(config: Mapping[str, Any], key: str, allowed: tuple[object, ...]) -> None:
    if config.get(key) not in allowed:
        raise InvalidArgument(key, config.get(key), f"one of {allowed}")
