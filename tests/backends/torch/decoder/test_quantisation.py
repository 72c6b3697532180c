"""Quantised models: near the model they were made of, the same in any batch, one copy of them, or refused."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from millstream.backends.bundled import PYHELP
from millstream.backends.bundled.facts import load_facts
from millstream.backends.bundled.phrasing import canonical_question
from millstream.backends.fake import FakeBackend
from millstream.backends.native import Missing
from millstream.backends.torch.backend import TorchBackend
from millstream.backends.torch.decoder import quantisation
from millstream.backends.torch.decoder.config import decoder_config, read_config
from millstream.backends.torch.decoder.decoder import weight_bytes
from millstream.backends.torch.decoder.linear import HEAD_BITS, panel_level
from millstream.backends.torch.decoder.quantisation import OneDnnInt8Linear, check_quantization, quantise_rows
from millstream.backends.torch.decoder.weights import DecoderWeights
from millstream.backends.torch.kernels.native_kernels import make_kernels
from millstream.backends.worker import WorkerConfig
from millstream.errors import InvalidArgument, NotSupported
from millstream.scheduler.sampling_params import SamplingParams

from ....lower_levels import LOWER_LEVELS, run_at
from ..checkpoints import save_checkpoint
from ..driver import LEVELS, Driver, native_worker

CPU = torch.device("cpu")
SCORED = SamplingParams(temperature=0, prompt_logprobs=0)
native_only = pytest.mark.skipif(not LEVELS, reason="the native kernels are not built here")


def _questions(count: int) -> list[list[int]]:
    """Prompts for the bundled model."""
    tokenizer = TorchBackend().load_tokenizer(TorchBackend().inspect("pyhelp", PYHELP))
    facts = load_facts(PYHELP / "facts.jsonl")[:: 3510 // count][:count]
    chats = [[{"role": "user", "content": canonical_question(fact)}] for fact in facts]
    texts = [tokenizer.apply_chat_template(chat) for chat in chats]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def _logprobs(quantization: str, dtype: torch.dtype, prompts: list[list[int]]) -> torch.Tensor:
    worker = native_worker(
        PYHELP,
        dtype=dtype,
        kernels=make_kernels(CPU),
        block_size=16,
        num_blocks=128,
        quantization=quantization,
    )
    found = []
    for prompt in prompts:
        driver = Driver(worker)
        driver.run([prompt], 1, params=SCORED)
        found += [
            entry.logprob
            for result in driver.results
            for entry in result.prompt_logprobs.get(0, ())
            if entry is not None
        ]
    return torch.tensor(found)


@native_only
@pytest.mark.parametrize(("quantization", "error", "same"), [("int8", 0.1, 0.97), ("int4", 0.6, 0.75)])
def test_a_quantised_model_stays_near_its_source(quantization: str, error: float, same: float) -> None:
    prompts = _questions(6)
    off = _logprobs(quantization, torch.float32, prompts) - _logprobs("none", torch.float32, prompts)
    assert 0 < off.abs().mean() < error

    def answers(name: str) -> list[list[int]]:
        worker = native_worker(
            PYHELP, kernels=make_kernels(CPU), block_size=16, num_blocks=128, quantization=name
        )
        return Driver(worker).run(prompts, 16)

    agreeing = [
        a == b
        for x, y in zip(answers(quantization), answers("none"), strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    assert sum(agreeing) / len(agreeing) >= same


@native_only
@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3", "phi3", "llama-bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_do_not_depend_on_the_batch(
    quantization: str, family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    save_checkpoint(family, tmp_path)
    prompts = [[5, 17, 99, 4], [33], [3 + (7 * i * i) % 120 for i in range(41)], [100, 90]]

    def worker() -> Driver:
        return Driver(
            native_worker(
                tmp_path, dtype=dtype, kernels=make_kernels(CPU), block_size=16, quantization=quantization
            )
        )

    together = worker().run(prompts, 10)
    assert together == [worker().run([prompt], 10)[0] for prompt in prompts]
    assert len({token for tokens in together for token in tokens}) > 4


@native_only
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("family", ["qwen2", "llama-bias", "glm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plan_is_what_the_weights_take(
    quantization: str, family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    if quantization == "none" and dtype == torch.bfloat16 and panel_level(dtype, CPU, 48) is None:
        pytest.skip("oneDNN's layouts have no storage to look at")
    save_checkpoint(family, tmp_path)
    config = decoder_config(read_config(tmp_path), 64)
    worker = native_worker(tmp_path, dtype=dtype, quantization=quantization)
    seen: dict[int, int] = {}
    _count(worker, seen, set())
    planned = weight_bytes(config, dtype, CPU, quantization)
    taken = sum(seen.values())
    # bfloat16 layers are packed as tightly as their weights allow.
    if quantization == "none" and dtype == torch.bfloat16:
        assert 0.7 * planned < taken <= 1.02 * planned
    else:
        assert planned == pytest.approx(taken, rel=0.02)


def _count(thing: object, seen: dict[int, int], visited: set[int]) -> None:
    """Bytes by address of the tensors that the decoder's weights are made of."""
    if id(thing) in visited:
        return
    visited.add(id(thing))
    if isinstance(thing, torch.Tensor):
        seen[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        return
    if isinstance(thing, (list, tuple)):
        for item in thing:
            _count(item, seen, visited)
        return
    names = list(getattr(thing, "__dict__", ()))
    names += [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    parts = {"_model", "_embedding", "_layers", "_final_norm", "_head"}
    inner = {
        "_linear",
        "qkv",
        "output",
        "gated",
        "down",
        "gate_up",
        "weights",
        "_weights",
        "weight",
        "bias",
        "packed",
    }
    norms = {"before_attention", "after_attention", "before_mlp", "after_mlp", "query_norm", "key_norm"}
    for name in {*names} & (parts | inner | norms | {"scales"}):
        _count(getattr(thing, name), seen, visited)


MEASURE = """
import sys
from pathlib import Path
import torch
from millstream.backends.torch.decoder.config import decoder_config, read_config
from millstream.backends.torch.decoder.decoder import NativeDecoder, weight_bytes
from millstream.backends.torch.kernels.native_kernels import make_kernels
from millstream.backends.torch.decoder.weights import DecoderWeights

def status(name):
    text = Path("/proc/self/status").read_text()
    return int(text[text.index(name):].split()[1]) * 1024

folder, quantization = Path(sys.argv[1]), sys.argv[2]
cpu = torch.device("cpu")
kernels = make_kernels(cpu)
config = decoder_config(read_config(folder), 64)
kv = kernels.allocate_kv(config.kv_shapes, 4, 16, torch.bfloat16, cpu)
torch.ones(64, 64).bfloat16() @ torch.ones(64, 64).bfloat16()
before = status("VmRSS")
weights = DecoderWeights(folder, config, torch.bfloat16, cpu, lambda share: None, keep_float32=True)
model = NativeDecoder(weights, kernels, kv, quantization)
print(status("VmHWM") - before, weight_bytes(config, torch.bfloat16, cpu, quantization))
"""


@pytest.fixture(scope="module")
def twelve_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose layers are large beside what else is allocated."""
    folder = tmp_path_factory.mktemp("twelve_layers")
    changes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "head_dim": 64}
    save_checkpoint("llama", folder, num_attention_heads=8, num_key_value_heads=8, **changes)
    return folder


@native_only
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_loading_never_holds_two_copies(quantization: str, twelve_layers: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(twelve_layers), quantization],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, planned = map(int, run.stdout.split())
    layer = 4 * (4 * 512 * 512 + 3 * 512 * 2048)  # in float32, as it is stored
    buffer = 16 << 20
    # The layer is there twice: as mapped from the file, and fused.
    assert peak < planned + 2 * layer + buffer + (24 << 20) < 12 * layer


def test_weights_keep_what_the_files_hold_for_a_caller_who_quantises(tmp_path: Path) -> None:
    model = save_checkpoint("llama", tmp_path)
    config = decoder_config(read_config(tmp_path), 64)

    def head() -> torch.Tensor:
        weights = DecoderWeights(tmp_path, config, torch.bfloat16, CPU, lambda share: None, keep_float32=True)
        assert weights.embedding().dtype == torch.bfloat16
        return weights.head()

    assert torch.equal(head(), model.lm_head.weight.detach())
    model.bfloat16().save_pretrained(tmp_path)
    assert head().dtype == torch.bfloat16


def test_rows_are_quantised_alone() -> None:
    x = torch.randn(5, 40)
    x[1] = 0
    values, scales = quantise_rows(x)
    assert values.abs().amax(1).tolist() == [127, 0, 127, 127, 127]
    assert ((values * scales[:, None] - x).abs() <= scales[:, None] * 0.5001).all()


needs_onednn = pytest.mark.skipif(
    "onednn" not in torch.backends.quantized.supported_engines, reason="torch has no 8-bit products here"
)


@needs_onednn
@pytest.mark.parametrize("rows", [1, 3, 33])
def test_the_layer_made_of_torch_operators(rows: int) -> None:
    weight, bias, x = torch.randn(48, 96), torch.randn(48), torch.randn(rows, 96)
    y = OneDnnInt8Linear.make(weight, bias, torch.float32)(x)
    (integers, scales), (inputs, of_rows) = quantise_rows(weight), quantise_rows(x)
    exact = (inputs.double() @ integers.double().t()).float() * scales * of_rows[:, None] + bias
    torch.testing.assert_close(y, exact, rtol=1e-6, atol=1e-5)
    half = OneDnnInt8Linear.make(weight, None, torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16


@needs_onednn
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_products_of_torch_operators_are_exact_where_16_bits_overflow(rows: int) -> None:
    weight, x = torch.full((48, 512), 127.0), torch.full((rows, 512), 127.0)
    weight[1::2] *= -1
    x[::2, ::3] *= -1
    exact = x.double() @ weight.double().t()
    assert torch.equal(OneDnnInt8Linear.make(weight, None, torch.float32)(x).double(), exact)


@needs_onednn
@pytest.mark.parametrize("level", LOWER_LEVELS)
def test_torch_operators_at_lower_levels(level: str) -> None:
    chosen = "(torch_operators and not lower) or without_native_kernels"
    run_at(level, "-m", "pytest", "-q", "-k", chosen, __file__)


@needs_onednn
@pytest.mark.parametrize("family", ["qwen2", "llama-bias"])
def test_int8_without_native_kernels(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(family, tmp_path)
    monkeypatch.setattr("millstream.backends.torch.decoder.linear.best_level", lambda: Missing("not built"))
    prompt = [5, 17, 99, 4]
    found = Driver(native_worker(tmp_path, quantization="int8")).run([prompt], 8)
    plain = Driver(native_worker(tmp_path)).run([prompt], 8)
    assert sum(a == b for a, b in zip(found[0], plain[0], strict=True)) >= 4


def _config(**changes: str) -> WorkerConfig:
    config = WorkerConfig(
        device="cpu",
        dtype="bfloat16",
        max_length=64,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size=16,
        num_blocks=8,
        threads=1,
        quantization="int8",
    )
    return msgspec.structs.replace(config, **changes)


@native_only
def test_memory_needs_follow_the_quantisation(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path, hidden_size=192, intermediate_size=512)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    needs = [backend.memory_needs(info, _config(quantization=q)).weights for q in ("none", "int8", "int4")]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > 1.5 * needs[1] > 2 * needs[2] > 0
    assert HEAD_BITS == 8


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"quantization": "int3"}, InvalidArgument, "quantization is 'int3'; allowed: none, int8, int4"),
        ({"device": "cuda"}, NotSupported, "quantization 'int8' runs on the CPU only, not on cuda"),
        ({"dtype": "float16"}, NotSupported, "needs activations in float32 or bfloat16, not in float16"),
    ],
)
def test_what_cannot_be_quantised(
    changes: dict[str, str], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    save_checkpoint("llama", tmp_path)
    info = TorchBackend().inspect("tiny", tmp_path)
    with pytest.raises(error, match=re.escape(sentence)):
        TorchBackend().memory_needs(info, _config(**changes))


def test_models_that_transformers_runs_are_not_quantised(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=128, n_embd=48, n_layer=2, n_head=4, n_positions=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    info = TorchBackend().inspect("tiny", tmp_path)
    with pytest.raises(NotSupported, match="needs a family that the native decoder runs; GPT2LMHeadModel"):
        TorchBackend().memory_needs(info, _config())


def test_int4_needs_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "best_level", lambda: Missing("not built: install a compiler"))
    given = {"native": True, "device": "cpu", "dtype": "bfloat16", "architecture": "Llama"}
    with pytest.raises(NotSupported, match="'int4' needs the native kernels, which are not built"):
        check_quantization("int4", **given)
    if "onednn" in torch.backends.quantized.supported_engines:
        check_quantization("int8", **given)


def test_other_backends_refuse() -> None:
    backend = FakeBackend()
    info = backend.inspect("any", Path())
    with pytest.raises(NotSupported, match="quantization is 'int8': a fake model has no weights"):
        backend.memory_needs(info, _config())
