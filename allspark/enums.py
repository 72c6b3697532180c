"""DashInfer's enumerations: its names and its numbers."""

from enum import Enum, IntEnum


class AsStatus(IntEnum):
    """What a verb answers. Python's and C++'s spellings of DashInfer are both here."""

    ALLSPARK_SUCCESS = 0
    ALLSPARK_UNKNOWN_ERROR = 1
    ALLSPARK_PARAM_ERROR = 2
    ALLSPARK_IO_ERROR = 3
    ALLSPARK_MEMORY_ERROR = 4
    ALLSPARK_RUNTIME_ERROR = 5
    ALLSPARK_EXCEED_LIMIT_ERROR = 7
    ALLSPARK_INVALID_CALL_ERROR = 8
    ALLSPARK_ALLSPARK_INVALID_CALL_ERROR = 8
    ALLSPARK_EMPTY_REQUEST = 9
    ALLSPARK_ILLEGAL_REQUEST_ID = 10
    ALLSPARK_CACHE_MEMORY_OUT = 11
    ALLSPARK_REQUEST_DENIED = 12
    ALLSPARK_CHUNK_PREFILL = 14
    ALLSPARK_DEPRECATED = 20
    ALLSPARK_LORA_NUM_EXCEED_LIMIT_ERROR = 21
    ALLSPARK_LORA_RANK_EXCEED_LIMIT_ERROR = 22
    ALLSPARK_LORA_NOT_FOUND = 23
    ALLSPARK_LORA_ALREADY_LOADED = 24
    ALLSPARK_LORA_IN_USE = 25
    ALLSPARK_STREAMING = 200

    def __str__(self) -> str:
        return f"AsStatus.{self.name}"


class AsCacheMode(Enum):
    """How keys and values are stored."""

    AsCacheDefault = 0
    AsCacheQuantI8 = 1
    AsCacheQuantU4 = 2


class AsMHAPrefill(Enum):
    """Attention kernel for prompts."""

    AsPrefillDefault = 0
    AsPrefillFlashV2 = 10
    AsPrefillXformer = 11


class AsEvictionStrategy(Enum):
    """Which running request gives way when the cache is full."""

    MaxLength = 0
    Random = 1


class AsSchedulingStrategy(Enum):
    """Whether new prompts go before running requests."""

    ContextPriority = 0
    Balance = 1


class VocabType(Enum):
    """Kind of tokenizer, for JSON mode."""

    VOCAB_TYPE_WPM = 0
    VOCAB_TYPE_SPM = 1
    VOCAB_TYPE_UGM = 2
    VOCAB_TYPE_BPE = 3


class TargetDevice(Enum):
    """Kind of device; compare members or use `.name`."""

    CUDA = "CUDA"
    CPU = "CPU"
    CPU_NUMA = "CPU_NUMA"


class RoPEScaleMethod(Enum):
    """Kind of rotary scaling for `HuggingFaceModel.set_rope_scale_method`."""

    NO_SCALE = 0
    YaRN = 3
    NTK = 4


class RequestInferType(Enum):
    """What a request asks of the model."""

    Generate = 0
    ModelInference = 1


class RequestMMType(Enum):
    """What a request's input is made of."""

    TextInput = 0
    MultiMediaTypeRichText = 1
