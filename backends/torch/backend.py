"""TorchBackend: finds out about Hugging Face checkpoints and loads them into TorchWorkers."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from msgspec.structs import replace
from transformers import PretrainedConfig

from ...errors import InvalidArgument
from ...scheduler.batch import Pooling
from ..answers import Sampler
from ..machine.cpu_level import usable_features
from ..machine.hardware import MemoryLimit, has_bfloat16, memory_limit, physical_cores
from ..machine.threads import ThreadChooser
from ..native import set_threads
from ..text.tokenizer import HFTokenizer
from ..worker import (
    EmbeddingSpec,
    MemoryNeeds,
    ModelInfo,
    Progress,
    Tokenizer,
    Worker,
    WorkerConfig,
    WorkerSpec,
    require_plain_cache,
)
from .batch_invariance import require_batch_invariance
from .decoder.config import DTYPES, decoder_config, is_native, read_config, text_config
from .decoder.decoder import NativeDecoder, weight_bytes
from .decoder.quantisation import check_quantization
from .decoder.weights import DecoderWeights, count_parameters
from .encoders.sentence_folder import DenseLayers, SentenceFolder, read_sentence_folder
from .files.checkpoint import Checkpoint
from .files.model_info import eos_token_ids, generation_defaults, max_length
from .kernels.interface import KVCacheDtype
from .kernels.native_kernels import make_kernels
from .memory import activation_bytes, encoder_bytes
from .modules import config as transformers_config
from .purpose import Purpose, purpose
from .worker import TorchWorker

if TYPE_CHECKING:
    from .modules.model import TransformersModel


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
        made_for = purpose(config, path)
        if made_for is Purpose.TEXT and not is_native(config):
            transformers_config.causal_class(config)
        sentences = read_sentence_folder(path)
        text = _text(config, made_for)
        length = max_length(text)
        if made_for is not Purpose.TEXT:
            length = min(length, sentences.max_length or length)
        if is_native(config):
            has_head = made_for is Purpose.TEXT
            parameters = count_parameters(decoder_config(config, length, has_head=has_head))
        else:
            parameters = sum(header.size for header in checkpoint.headers.values())
        return ModelInfo(
            name=name,
            path=path,
            backend=self.name,
            architecture=(config.architectures or [config.model_type])[0],
            num_parameters=parameters,
            vocab_size=text.vocab_size,
            max_length=length,
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
            raise InvalidArgument("threads", threads, "0 (as many as are fastest) or more")
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
        made_for = purpose(model_config, info.path)
        check_quantization(
            config.quantization,
            native=is_native(model_config),
            device=config.device,
            dtype=config.dtype,
            architecture=info.architecture,
        )
        if made_for is Purpose.EMBEDDINGS:
            require_batch_invariance(config, info.name, None, ())
            require_plain_cache(config, f"{info.architecture} keeps no keys and values")
            return MemoryNeeds(
                weights=info.num_parameters * dtype.itemsize,
                activations=encoder_bytes(_text(model_config, made_for), config, dtype),
                kv_per_block=1,
            )
        if is_native(model_config):
            decoder = decoder_config(model_config, config.max_length, has_head=made_for is Purpose.TEXT)
            weights = weight_bytes(decoder, dtype, torch.device(config.device), config.quantization)
            shapes = decoder.kv_shapes
            widths = (decoder.hidden_size, decoder.num_heads * decoder.head_dim, decoder.intermediate_size)
            require_batch_invariance(config, info.name, widths, shapes)
        else:
            weights = info.num_parameters * dtype.itemsize
            shapes = transformers_config.kv_shapes(model_config)
            require_batch_invariance(config, info.name, None, shapes)
        return MemoryNeeds(
            weights=weights,
            activations=activation_bytes(_text(model_config, made_for), shapes, config, dtype),
            kv_per_block=make_kernels(torch.device(config.device)).kv_bytes_per_block(
                shapes, config.block_size, dtype, KVCacheDtype(config.kv_cache_dtype)
            ),
        )

    def memory_limit(self, device: str) -> MemoryLimit:
        """See `Backend`."""
        if device == "cpu":
            return memory_limit()
        free, total = torch.cuda.mem_get_info(device)
        return MemoryLimit(total, total - free, torch.cuda.get_device_name(device), shared=False)

    def load(self, info: ModelInfo, config: WorkerConfig, progress: Progress) -> Worker:
        """See `Backend`. The number of torch's own threads holds for the whole process.

        Which number is taken is chosen step by step where all products are native ones, whose results it does
        not change. Those of torch's may change in their last bits; with them it is `config.threads`.

        Raises:
            NotSupported: the model runs neither natively nor through transformers; the message says why.
        """
        torch.set_num_threads(config.threads)
        set_threads(config.threads)
        model_config = read_config(info.path)
        made_for = purpose(model_config, info.path)
        sentences = read_sentence_folder(info.path)
        dense = DenseLayers(sentences.dense) if sentences.dense else None
        if made_for is Purpose.EMBEDDINGS:
            # transformers' modules take two seconds, which native models need not wait for.
            from .encoders.encoder import load_encoder
            from .encoders.worker import EncoderWorker

            encoder = load_encoder(info, config, progress)
            embedding = _embedding(encoder.hidden_size, sentences, Pooling.MEAN)
            return EncoderWorker(_spec(info, config, made_for, embedding), encoder, dense)
        model: NativeDecoder | TransformersModel
        if is_native(model_config):
            model = _load_native(model_config, made_for, info, config, progress)
        else:
            from .modules.model import load

            model = load(info, config, make_kernels(torch.device(config.device)), progress)
        embedding = _embedding(model.hidden_size, sentences, Pooling.LAST)
        sampler = Sampler(info.vocab_size, config.max_num_seqs, config.device)
        invariant = isinstance(model, NativeDecoder) and model.has_native_products
        threads = ThreadChooser(config.threads, tunes=config.tunes_threads and invariant)
        spec = replace(_spec(info, config, made_for, embedding), learning_steps=threads.learning_steps)
        return TorchWorker(spec, model, sampler, dense, threads)

    def load_tokenizer(self, info: ModelInfo) -> Tokenizer:
        """See `Backend`."""
        return HFTokenizer.from_folder(info.path, info.eos_token_ids)


def _embedding(hidden_size: int | None, sentences: SentenceFolder, default: Pooling) -> EmbeddingSpec | None:
    """What embeddings a model gives whose hidden states have that size; None where they cannot be got at.

    Raises:
        ModelFormatError: the dense layers behind it take vectors of another size.
    """
    if hidden_size is None:
        return None
    return EmbeddingSpec(
        size=sentences.output_size(hidden_size),
        pooling=sentences.pooling or default,
        normalizes=sentences.normalizes is not False,
    )


def _spec(
    info: ModelInfo, config: WorkerConfig, made_for: Purpose, embedding: EmbeddingSpec | None
) -> WorkerSpec:
    whole = made_for is Purpose.EMBEDDINGS
    return WorkerSpec(
        vocab_size=info.vocab_size,
        max_length=config.max_length,
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        # A GPU's allocator and tuners need the largest step; a CPU has nothing to learn from its length.
        warmup_tokens=64 if config.device == "cpu" else config.max_num_batched_tokens,
        shares_prefixes=not whole,
        generates=made_for is Purpose.TEXT,
        embedding=embedding,
        chunks_prompts=not whole,
        device=config.device,
        dtype=config.dtype,
    )


def _load_native(
    model_config: PretrainedConfig,
    made_for: Purpose,
    info: ModelInfo,
    config: WorkerConfig,
    progress: Progress,
) -> NativeDecoder:
    dtype, device = DTYPES[config.dtype], torch.device(config.device)
    decoder = decoder_config(model_config, config.max_length, has_head=made_for is Purpose.TEXT)
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


def _text(config: PretrainedConfig, made_for: Purpose) -> PretrainedConfig:
    """The part of a configuration that says what the text model is like."""
    if is_native(config):
        return text_config(config)
    return config.get_text_config(decoder=True if made_for is Purpose.TEXT else None)


def _best_dtype(device: str) -> str:
    if device == "cpu":
        return "bfloat16" if has_bfloat16(usable_features()) else "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
