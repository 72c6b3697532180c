"""TorchBackend: finds out about Hugging Face checkpoints and loads them into TorchWorkers."""

from pathlib import Path

import torch
from transformers import PretrainedConfig

from ...errors import InvalidArgument
from ..hardware import MemoryLimit, cpu_has_bfloat16, memory_limit, physical_cores
from ..sampling import Sampler
from ..tokenizer import HFTokenizer
from ..worker import MemoryNeeds, ModelInfo, Progress, Tokenizer, Worker, WorkerConfig, WorkerSpec
from . import transformers_config
from .checkpoint import Checkpoint
from .config import decoder_config, is_native, read_config, text_config
from .decoder import NativeDecoder, weight_bytes
from .kernels import KVCacheDtype
from .memory import activation_bytes
from .model import PagedModel
from .model_info import eos_token_ids, generation_defaults, max_length
from .native_kernels import make_kernels
from .quantisation import check_quantization
from .weights import DecoderWeights, count_parameters
from .worker import TorchWorker

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types to compute in, by the names that WorkerConfig uses."""


class TorchBackend:
    """Reads folders of safetensors; implements the Backend protocol."""

    name = "torch"

    def inspect(self, name: str, path: Path) -> ModelInfo:
        """See `Backend`; reads the headers of the weight files, too, so that a damaged model is found here.

        Raises:
            NotSupported: transformers knows the kind of model, and it cannot run here.
        """
        config = read_config(path)
        checkpoint = Checkpoint(path)
        text = text_config(config)
        if is_native(config):
            parameters = count_parameters(decoder_config(config, max_length(text)))
        else:
            transformers_config.causal_class(config)
            text = config.get_text_config(decoder=True)
            parameters = sum(header.size for header in checkpoint.headers.values())
        return ModelInfo(
            name=name,
            path=path,
            backend=self.name,
            architecture=(config.architectures or [config.model_type])[0],
            num_parameters=parameters,
            vocab_size=text.vocab_size,
            max_length=max_length(text),
            eos_token_ids=eos_token_ids(path, config),
            generation_defaults=generation_defaults(path),
        )

    def resolve(self, info: ModelInfo, *, device: str, dtype: str, threads: int) -> tuple[str, str, int]:
        """See `Backend`: CUDA where there is one; bfloat16 where the device computes in it."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._check_device(device)
        if dtype == "auto":
            dtype = _best_dtype(device)
        if dtype not in DTYPES:
            raise InvalidArgument("dtype", dtype, f"auto, {', '.join(DTYPES)}")
        if threads < 0:
            raise InvalidArgument("threads", threads, "0 (all physical cores) or more")
        return device, dtype, threads or physical_cores()

    @staticmethod
    def _check_device(device: str) -> None:
        devices = ["cpu"]
        if torch.cuda.is_available():
            devices += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if device not in devices:
            raise InvalidArgument("device", device, f"auto, {', '.join(devices)}")

    def memory_needs(self, info: ModelInfo, config: WorkerConfig) -> MemoryNeeds:
        """See `Backend`."""
        dtype = DTYPES[config.dtype]
        model_config = read_config(info.path)
        check_quantization(
            config.quantization,
            native=is_native(model_config),
            device=config.device,
            dtype=config.dtype,
            architecture=info.architecture,
        )
        if is_native(model_config):
            decoder = decoder_config(model_config, config.max_length)
            weights = weight_bytes(decoder, dtype, torch.device(config.device), config.quantization)
            shapes = decoder.kv_shapes
        else:
            weights = info.num_parameters * dtype.itemsize
            shapes = transformers_config.kv_shapes(model_config)
        return MemoryNeeds(
            weights=weights,
            activations=activation_bytes(_text(model_config), shapes, config, dtype),
            kv_per_block=make_kernels(torch.device(config.device)).kv_bytes_per_block(
                shapes, config.block_size, dtype, KVCacheDtype(config.kv_cache_dtype)
            ),
        )

    def memory_limit(self, device: str) -> MemoryLimit:
        """See `Backend`."""
        if device == "cpu":
            return memory_limit()
        free, total = torch.cuda.mem_get_info(device)
        return MemoryLimit(total, total - free, torch.cuda.get_device_name(device))

    def load(self, info: ModelInfo, config: WorkerConfig, progress: Progress) -> Worker:
        """See `Backend`. The number of threads holds for the whole process.

        Raises:
            NotSupported: the model runs neither natively nor through transformers; the message says why.
        """
        torch.set_num_threads(config.threads)
        model_config = read_config(info.path)
        if is_native(model_config):
            model = _load_native(model_config, info, config, progress)
        else:
            from . import transformers_model  # takes two seconds, which native models need not wait for

            model = transformers_model.load(info, config, make_kernels(torch.device(config.device)), progress)
        spec = WorkerSpec(
            vocab_size=info.vocab_size,
            max_length=config.max_length,
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            # A GPU's allocator and tuners need the largest step; a CPU has nothing to learn from its length.
            warmup_tokens=64 if config.device == "cpu" else config.max_num_batched_tokens,
            device=config.device,
            dtype=config.dtype,
        )
        return TorchWorker(spec, model, Sampler(info.vocab_size, config.max_num_seqs, config.device))

    def load_tokenizer(self, info: ModelInfo) -> Tokenizer:
        """See `Backend`."""
        return HFTokenizer.from_folder(info.path, info.eos_token_ids)


def _load_native(
    model_config: PretrainedConfig, info: ModelInfo, config: WorkerConfig, progress: Progress
) -> PagedModel:
    dtype, device = DTYPES[config.dtype], torch.device(config.device)
    decoder = decoder_config(model_config, config.max_length)
    weights = DecoderWeights(
        info.path,
        decoder,
        dtype,
        device,
        lambda share: progress("weights", share),
        keep_float32=config.quantization != "none",
    )
    kernels = make_kernels(device)
    kv = kernels.allocate_kv(
        decoder.kv_shapes,
        config.num_blocks,
        config.block_size,
        dtype,
        device,
        KVCacheDtype(config.kv_cache_dtype),
    )
    return NativeDecoder(weights, kernels, kv, config.quantization)


def _text(config: PretrainedConfig) -> PretrainedConfig:
    return text_config(config) if is_native(config) else config.get_text_config(decoder=True)


def _best_dtype(device: str) -> str:
    if device == "cpu":
        return "bfloat16" if cpu_has_bfloat16() else "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
