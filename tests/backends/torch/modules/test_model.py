"""transformers' modules on the paged cache give their own greedy tokens, or are refused with a reason."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from millstream.backends.answers import Sampler
from millstream.backends.torch.backend import TorchBackend
from millstream.backends.torch.kernels.interface import AttentionSpec, KVCacheDtype, KVShape
from millstream.backends.torch.kernels.step_inputs import StepInputs
from millstream.backends.torch.kernels.torch_kernels import TorchKernels, TorchKVStep, TorchPagedKV
from millstream.backends.torch.modules.check import Check
from millstream.backends.torch.modules.config import causal_class, check_length, kv_shapes
from millstream.backends.torch.modules.families import split_positions, split_slopes
from millstream.backends.torch.modules.model import TransformersModel, load
from millstream.backends.torch.worker import TorchWorker
from millstream.backends.worker import ModelInfo, WorkerConfig, WorkerSpec
from millstream.errors import InvalidArgument, ModelFormatError, NotSupported

from ..checkpoints import greedy
from ..driver import Driver

VOCAB = 128
MAX_LENGTH = 128
COUNT = 10
PROMPTS = [
    [5, 17, 99, 4, 5, 6, 7, 8, 61, 62, 63, 64, 9],
    [33],
    [3 + (7 * i * i) % 120 for i in range(41)],
    [100, 90],
]
GPT: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
)
LLAMA: Mapping[str, Any] = MappingProxyType({**GPT, "intermediate_size": 80, "num_key_value_heads": 2})
MOE: Mapping[str, Any] = MappingProxyType(
    {**LLAMA, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}
)
LATENT: Mapping[str, Any] = MappingProxyType(
    {
        **MOE,
        "num_key_value_heads": 6,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "first_k_dense_replace": 1,
    }
)

CASES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gpt2": {"model_type": "gpt2", **GPT},
        "gpt2-scaled": {"model_type": "gpt2", **GPT, "scale_attn_by_inverse_layer_idx": True},
        "gpt2-tied": {"model_type": "gpt2", **GPT, "tie_word_embeddings": True},
        "opt": {"model_type": "opt", **GPT, "ffn_dim": 80, "word_embed_proj_dim": 48},
        "opt-350m": {
            "model_type": "opt",
            **GPT,
            "ffn_dim": 80,
            "word_embed_proj_dim": 24,
            "do_layer_norm_before": False,
        },
        "gpt_neox": {"model_type": "gpt_neox", **GPT, "intermediate_size": 80},
        "gpt_neox-serial": {
            "model_type": "gpt_neox",
            **GPT,
            "intermediate_size": 80,
            "use_parallel_residual": False,
        },
        "mixtral": {"model_type": "mixtral", **MOE, "num_local_experts": 4, "sliding_window": None},
        "mixtral-window": {"model_type": "mixtral", **MOE, "num_local_experts": 4, "sliding_window": 11},
        "qwen3_moe": {"model_type": "qwen3_moe", **MOE, "head_dim": 16},
        "stablelm": {"model_type": "stablelm", **LLAMA, "partial_rotary_factor": 0.5},
        "stablelm-parallel": {
            "model_type": "stablelm",
            **LLAMA,
            "partial_rotary_factor": 0.5,
            "use_parallel_residual": True,
            "qk_layernorm": True,
        },
        "bloom": {"model_type": "bloom", **GPT},
        "falcon-7b": {"model_type": "falcon", **GPT, "multi_query": True},
        "falcon-40b": {
            "model_type": "falcon",
            **GPT,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
        "falcon-rw": {
            "model_type": "falcon",
            **GPT,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
        "mpt": {
            "model_type": "mpt",
            "vocab_size": VOCAB,
            "d_model": 48,
            "n_heads": 6,
            "n_layers": 2,
            "max_seq_len": MAX_LENGTH,
        },
        "gptj": {"model_type": "gptj", **GPT, "rotary_dim": 4},
        "codegen": {"model_type": "codegen", **GPT, "num_attention_heads": 4, "rotary_dim": 6},
        "gpt_neo": {
            "model_type": "gpt_neo",
            **GPT,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 9,
        },
        "gpt_bigcode": {"model_type": "gpt_bigcode", **GPT},
        "phi": {"model_type": "phi", **LLAMA},
        "starcoder2": {"model_type": "starcoder2", **LLAMA, "sliding_window": 10},
        "cohere": {"model_type": "cohere", **LLAMA, "logit_scale": 0.3},
        "cohere2": {
            "model_type": "cohere2",
            **LLAMA,
            "sliding_window": 10,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "olmo": {"model_type": "olmo", **LLAMA},
        "olmoe": {"model_type": "olmoe", **MOE},
        "granitemoe": {"model_type": "granitemoe", **MOE, "num_local_experts": 4, "logits_scaling": 2.0},
        "vaultgemma": {
            "model_type": "vaultgemma",
            **LLAMA,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 9.0,
            "sliding_window": 10,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "nemotron": {"model_type": "nemotron", **LLAMA},
        "deepseek_v2": {"model_type": "deepseek_v2", **LATENT},
        "deepseek_v3": {"model_type": "deepseek_v3", **LATENT},
    }
)


def make_model(values: Mapping[str, Any]) -> PreTrainedModel:
    """A random float32 model whose weights are spread widely enough for greedy tokens to vary."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.05)
        elif parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
        else:
            torch.nn.init.normal_(parameter, 0.0, 1.5 / parameter.shape[-1] ** 0.5)
    model.generation_config.pad_token_id = 0
    return model.eval()


def info_of(folder: Path) -> ModelInfo:
    return ModelInfo(
        name=folder.name,
        path=folder,
        backend="torch",
        architecture="a test",
        num_parameters=0,
        vocab_size=VOCAB,
        max_length=MAX_LENGTH,
        eos_token_ids=(2,),
        generation_defaults={},
    )


def config_of(dtype: str = "float32", max_length: int = MAX_LENGTH) -> WorkerConfig:
    return WorkerConfig(
        device="cpu",
        dtype=dtype,
        max_length=max_length,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        block_size=4,
        num_blocks=64,
        threads=1,
    )


def load_quietly(folder: Path, dtype: str = "float32", max_length: int = MAX_LENGTH) -> Any:
    return load(info_of(folder), config_of(dtype, max_length), TorchKernels(), lambda what, share: None)


def worker_of(folder: Path, dtype: str = "float32") -> TorchWorker:
    spec = WorkerSpec(
        vocab_size=VOCAB,
        max_length=MAX_LENGTH,
        block_size=4,
        num_blocks=64,
        max_num_seqs=8,
        max_num_batched_tokens=256,
    )
    return TorchWorker(spec, load_quietly(folder, dtype), Sampler(VOCAB, 8, "cpu"))


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_the_reference(case: str, tmp_path: Path) -> None:
    model = make_model(CASES[case])
    model.save_pretrained(tmp_path)
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # sdpa leaves the cap out in transformers 5.16
    expected = [greedy(model, prompt, COUNT) for prompt in PROMPTS]
    assert len({token for tokens in expected for token in tokens}) > COUNT, "the checkpoint says nothing"
    driver = Driver(worker_of(tmp_path))
    assert driver.run(PROMPTS, COUNT) == expected
    assert driver.run(PROMPTS[::-1], COUNT) == expected[::-1], "blocks used before"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["gpt2", "bloom", "qwen3_moe"])
def test_shorter_dtypes_pass_the_check_at_load(case: str, dtype: str, tmp_path: Path) -> None:
    make_model(CASES[case]).save_pretrained(tmp_path)
    tokens = Driver(worker_of(tmp_path, dtype)).run(PROMPTS, COUNT)
    assert [len(found) for found in tokens] == [COUNT] * len(PROMPTS)


@pytest.mark.parametrize("case", ["opt", "bloom"])
def test_sequences_read_blocks_that_another_fills_in_the_same_step(case: str, tmp_path: Path) -> None:
    model = make_model(CASES[case])
    model.save_pretrained(tmp_path)
    prompts = [[7, 9, 11, 13, 90, 80, 70, 60, *end] for end in ([5, 6, 40], [50], [33, 34])]
    found = Driver(worker_of(tmp_path)).run(prompts, COUNT, shared_blocks=2)
    assert found == [greedy(model, prompt, COUNT) for prompt in prompts]


def test_no_rows_wanted_gives_no_logits(tmp_path: Path) -> None:
    make_model(CASES["opt"]).save_pretrained(tmp_path)
    model = load_quietly(tmp_path)
    step = Check.of(VOCAB, MAX_LENGTH, 4, torch.device("cpu")).steps[0]
    found = model.forward(dataclasses.replace(step, logit_rows=torch.empty(0, dtype=torch.long)))
    assert found.logits.shape == (0, VOCAB)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_position_biases_are_exact_far_along_a_sequence(dtype: torch.dtype) -> None:
    slopes = torch.tensor([0.7071, 0.5, 0.0123, 2.0**-8])
    positions = torch.tensor([0, 1, 255, 256, 257, 2047, 30000, 65535])
    found = split_slopes(slopes).to(dtype).double() @ split_positions(positions).to(dtype).double().T
    torch.testing.assert_close(found, torch.outer(slopes, positions).double(), rtol=2e-5, atol=0)


class AllRows(torch.nn.Module):
    """A module that does not look at what rows are wanted."""

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, VOCAB))


def test_logits_of_other_rows_are_not_taken() -> None:
    step = Check.of(VOCAB, MAX_LENGTH, 4, torch.device("cpu")).steps[0]
    kv = TorchKernels().allocate_kv((KVShape(1, 8, 8),), 8, 4, torch.float32, torch.device("cpu"))
    module: Any = AllRows()
    with pytest.raises(NotSupported, match="AllRows gives logits of rows that nobody asked for"):
        TransformersModel(module, {}, kv).forward(step)


def test_runs_as_a_model_of_the_backend(tmp_path: Path) -> None:
    model = make_model(CASES["gpt_neox"])
    model.save_pretrained(tmp_path)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    needs = backend.memory_needs(info, config_of())
    assert needs.kv_per_block == 2 * 2 * 48 * 4 * 4  # layers, key and value, width, bytes, tokens
    worker = backend.load(info, config_of(), lambda what, share: None)
    assert Driver(worker).run(PROMPTS[:2], COUNT) == [greedy(model, prompt, COUNT) for prompt in PROMPTS[:2]]


@pytest.mark.parametrize(("case", "length"), [("opt", MAX_LENGTH), ("mpt", MAX_LENGTH), ("bloom", 2048)])
def test_the_backend_finds_the_length(case: str, length: int, tmp_path: Path) -> None:
    values = {name: value for name, value in CASES[case].items() if case != "bloom" or "max_pos" not in name}
    make_model(values).save_pretrained(tmp_path)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    assert (info.max_length, info.vocab_size) == (length, VOCAB)
    assert backend.memory_needs(info, config_of()).weights == 4 * info.num_parameters


REFUSED_BY_CONFIGURATION: Mapping[str, tuple[Mapping[str, Any], str]] = MappingProxyType(
    {
        "mamba": ({"model_type": "mamba"}, "MambaForCausalLM keeps a recurrent state"),
        "rwkv": ({"model_type": "rwkv"}, "RwkvForCausalLM keeps a recurrent state"),
        "jamba": ({"model_type": "jamba"}, "JambaForCausalLM keeps a recurrent state"),
        "xglm": ({"model_type": "xglm"}, "XGLMForCausalLM computes attention in code of its own"),
        "t5": ({"model_type": "t5"}, "t5 is an encoder-decoder model"),
        "vit": ({"model_type": "vit"}, "vit has no causal language model"),
        "sparse": ({"model_type": "deepseek_v32"}, "DeepseekV32ForCausalLM lets an indexer select keys"),
        "gptq": (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
            "LlamaForCausalLM with weights quantised by gptq",
        ),
    }
)


@pytest.mark.parametrize("case", REFUSED_BY_CONFIGURATION)
def test_refused_before_any_weight_is_read(case: str) -> None:
    values, sentence = REFUSED_BY_CONFIGURATION[case]
    with pytest.raises(NotSupported, match=sentence):
        causal_class(AutoConfig.for_model(**values))


REFUSED_AT_LOAD: Mapping[str, tuple[Mapping[str, Any], str]] = MappingProxyType(
    {
        "sinks": (
            {"model_type": "gpt_oss", **MOE, "num_local_experts": 4, "head_dim": 8},
            "GptOssForCausalLM cannot run on the paged cache: it has attention sinks",
        ),
        "bidirectional": (
            {"model_type": "bert", **LLAMA},
            "BertLMHeadModel cannot run on the paged cache: .* neither causal nor a sliding window",
        ),
        "chunks": (
            {
                "model_type": "llama4_text",
                **MOE,
                "num_local_experts": 2,
                "intermediate_size_mlp": 80,
                "head_dim": 8,
                "attention_chunk_size": 16,
            },
            "Llama4ForCausalLM cannot run on the paged cache: .* neither causal nor a sliding window",
        ),
        "twice": ({"model_type": "diffllama", **LLAMA}, "calls one attention module twice"),
        "other layers": (
            {"model_type": "lfm2", **LLAMA, "layer_types": ["conv", "full_attention"]},
            "Lfm2ForCausalLM has 2 layers and attends 1 times",
        ),
        "order for position": (
            {
                "model_type": "blenderbot",
                **GPT,
                "d_model": 48,
                "decoder_layers": 2,
                "decoder_attention_heads": 6,
                "decoder_ffn_dim": 80,
            },
            "BlenderbotForCausalLM gives other logits on the paged cache than on its own",
        ),
    }
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", REFUSED_AT_LOAD)
def test_refused_at_load(case: str, dtype: str, tmp_path: Path) -> None:
    values, sentence = REFUSED_AT_LOAD[case]
    make_model(values).save_pretrained(tmp_path)
    with pytest.raises(NotSupported, match=sentence):
        load_quietly(tmp_path, dtype)


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        (
            {
                "model_type": "stablelm",
                **LLAMA,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            },
            MAX_LENGTH,
        ),
        (
            {
                "model_type": "phimoe",
                **MOE,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "short_mscale": 1.0,
                    "long_mscale": 1.0,
                    "original_max_position_embeddings": 32,
                },
            },
            32,
        ),
        ({"model_type": "llama4_text", **MOE, "floor_scale": 64, "attn_temperature_tuning": True}, 64),
    ],
    ids=["dynamic", "longrope", "temperature"],
)
def test_lengths_at_which_neighbours_matter_are_refused(values: Mapping[str, Any], limit: int) -> None:
    config = AutoConfig.for_model(**values)
    check_length(config, limit)
    with pytest.raises(NotSupported, match=f"max_length is {limit + 1}, allowed: up to {limit}"):
        check_length(config, limit + 1)


class BrokenKernels(TorchKernels):
    """Attention comes out half of what it is."""

    def allocate_kv(
        self,
        shapes: Sequence[KVShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kind: KVCacheDtype = KVCacheDtype.AUTO,
    ) -> TorchPagedKV:
        return BrokenKV(shapes, num_blocks, block_size, dtype, device, kind)


class BrokenKV(TorchPagedKV):
    def step(self, inputs: StepInputs) -> TorchKVStep:
        super().step(inputs)
        return BrokenStep(self, inputs)


class BrokenStep(TorchKVStep):
    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        return super().attend(layer, query, spec) * 0.5


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_check_finds_attention_that_is_wrong(dtype: str, tmp_path: Path) -> None:
    make_model(CASES["gpt_neox"]).save_pretrained(tmp_path)
    with pytest.raises(NotSupported, match="GPTNeoXForCausalLM gives other logits"):
        load(info_of(tmp_path), config_of(dtype), BrokenKernels(), lambda what, share: None)


def test_truncated_weights_are_said_to_be(tmp_path: Path) -> None:
    make_model(CASES["gpt2"]).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelFormatError, match="cannot be read"):
        load_quietly(tmp_path)


def test_missing_weight_files_are_said_to_be(tmp_path: Path) -> None:
    make_model(CASES["gpt2"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match="cannot be read"):
        load_quietly(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop("transformer.h.1.attn.c_attn.weight"), "1 missing"),
        (
            lambda tensors: tensors.update({"transformer.h.1.attn.c_attn.weight": torch.zeros(48, 143)}),
            "c_attn",
        ),
    ],
    ids=["missing", "other shape"],
)
def test_weights_that_do_not_fit_are_said_to(
    change: Callable[[dict[str, Tensor]], object], sentence: str, tmp_path: Path
) -> None:
    make_model(CASES["gpt2"]).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match=sentence):
        load_quietly(tmp_path)


def test_a_dtype_that_modules_do_not_compute_in(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="dtype is 'int8'"):
        load_quietly(tmp_path, "int8")


def test_a_length_that_the_model_was_not_made_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"max_length is {MAX_LENGTH + 1}"):
        load_quietly(tmp_path, max_length=MAX_LENGTH + 1)


def test_shapes_of_the_cache_are_said_by_the_configuration() -> None:
    def shapes(case: str) -> set[tuple[int, int, int]]:
        found = kv_shapes(AutoConfig.for_model(**CASES[case]))
        assert len(found) == 2
        return {(shape.num_kv_heads, shape.key_dim, shape.value_dim) for shape in found}

    assert shapes("gpt2") == {(6, 8, 8)}
    assert shapes("qwen3_moe") == {(2, 16, 16)}
    assert shapes("gpt_bigcode") == {(1, 8, 8)}
    assert shapes("falcon-7b") == {(1, 8, 8)}
    assert shapes("falcon-40b") == {(2, 8, 8)}
    assert shapes("bloom") == {(6, 16, 8)}
    assert shapes("deepseek_v3") == {(6, 24, 12)}
