"""Adapters in the worker: each sequence's tokens are those of llama.cpp alone under its adapter."""

import random
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from gguf.quants import quantize

from millstream.backends.bundled import BUNDLED_MODELS, PYHELP
from millstream.backends.export.adapter import export_adapter
from millstream.backends.export.checkpoint import export_gguf
from millstream.backends.gguf.model_file import read_model
from millstream.backends.llamacpp.adapter_file import check_adapter
from millstream.backends.llamacpp.backend import LlamaCppBackend
from millstream.backends.torch.files.checkpoint import Checkpoint
from millstream.backends.worker import Adapter, WorkerConfig
from millstream.errors import LimitExceeded, ModelFormatError, NotSupported, WorkerError
from millstream.scheduler.batch import Batch, Chunk, SequenceStart, Wants
from millstream.scheduler.sampling_params import SamplingParams

from ..export.test_checkpoint import make_checkpoint
from .plain_llama import plain_llama
from .scripted_context import ScriptedContext
from .small_adapters import LINEAR, save_peft
from .test_worker import make

BASE = BUNDLED_MODELS["pyhelp-bf16"]
BLOCK, LENGTH, COUNT = 8, 128, 8
GREEDY = SamplingParams(temperature=0)
PROMPTS = [[1 + (7 * i + 31 * k) % 900 for i in range(20 + 9 * k)] for k in range(4)]


def load(path, **changes):
    numbers = {"max_length": LENGTH, "max_num_seqs": 4, "max_num_batched_tokens": 64, "num_blocks": 64}
    backend = LlamaCppBackend()
    info = backend.inspect("m", path)
    _, dtype, _ = backend.resolve(info, device="cpu", dtype="auto", threads=1)
    config = WorkerConfig(device="cpu", dtype=dtype, block_size=BLOCK, threads=1, **{**numbers, **changes})
    return backend.load(info, config, lambda what, share: None)


class Line:
    """A sequence: its tokens, and the adapter that it runs under."""

    def __init__(self, seq, prompt, adapter):
        self.seq, self.tokens, self.adapter, self.computed = seq, list(prompt), adapter, 0
        self.blocks = tuple(range(9 * seq, 9 * seq + 9))

    def start(self):
        return SequenceStart(
            self.seq, tuple(self.tokens), len(self.tokens), GREEDY, seed=0, adapter=self.adapter
        )


def generate(worker, lines, count=COUNT, seed=0):
    """Tokens of all lines; each step serves some lines of one adapter, at random."""
    order = random.Random(seed)
    lengths = [len(line.tokens) for line in lines]
    new = set(lines)
    while waiting := [
        line for line, length in zip(lines, lengths, strict=True) if len(line.tokens) < length + count
    ]:
        adapter = order.choice([line.adapter for line in waiting])
        chosen = [line for line in waiting if line.adapter == adapter]
        started, chunks = [], []
        for line in chosen:
            if line in new:
                new.remove(line)
                started.append(line.start())
            tokens = tuple(line.tokens[line.computed :][: 64 // len(chosen)])
            end = line.computed + len(tokens)
            wants = Wants.TOKEN if end == len(line.tokens) else Wants.NOTHING
            chunks.append(Chunk(line.seq, tokens, line.computed, line.blocks, wants))
        result = worker.execute(Batch(tuple(chunks), tuple(started)))
        for line, chunk, token in zip(chosen, chunks, result.token_ids, strict=True):
            line.computed += len(chunk.tokens)
            line.tokens += [] if token is None else [token]
    worker.execute(Batch((), (), tuple(line.seq for line in lines)))
    return [line.tokens[length:] for line, length in zip(lines, lengths, strict=True)]


def plain_tokens(path, prompt, adapter=None, scale=1.0):
    with plain_llama(path, as_served=True) as model:
        if adapter is not None:
            model.adapt(adapter, scale)
        return model.greedy(prompt, COUNT)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters for the bundled model, "a" and "b"."""
    folder = tmp_path_factory.mktemp("adapters")
    shapes = {
        name: header.shape for name, header in Checkpoint(PYHELP).headers.items() if LINEAR.fullmatch(name)
    }
    found = {}
    for seed, name in enumerate("ab"):
        save_peft(folder / name, shapes, rank=4 + seed, seed=seed)
        found[name] = export_adapter(PYHELP, folder / name, folder / f"{name}.gguf").path
    return found


@pytest.fixture(scope="module")
def expected(adapters):
    """Tokens of each prompt under each adapter, by llama.cpp alone."""
    paths = {None: None, **adapters}
    return {
        (name, k): plain_tokens(BASE, prompt, path)
        for name, path in paths.items()
        for k, prompt in enumerate(PROMPTS)
    }


def test_the_spec_says_that_adapters_are_taken_one_at_a_time():
    worker = load(BASE)
    assert (worker.spec.takes_adapters, worker.spec.mixes_adapters) == (True, False)
    assert worker.spec.generates
    worker.close()


@pytest.fixture
def plain(adapters):
    """llama.cpp alone under each adapter."""
    with ExitStack() as stack:
        models = {name: stack.enter_context(plain_llama(BASE, as_served=True)) for name in (None, *adapters)}
        for name, path in adapters.items():
            models[name].adapt(path)
        yield models


@pytest.mark.parametrize("num_blocks", [64, 40], ids=["streams", "unified"])
def test_steps_alternate_between_adapters(adapters, plain, num_blocks):
    worker = load(BASE, num_blocks=num_blocks)
    assert worker.streams is (num_blocks == 64)
    for name, path in adapters.items():
        worker.load_adapter(Adapter(name=name, path=path), None)
    for seed in range(3):
        names = [None, "a", "b", "a"][seed:] + [None] * seed
        lines = [Line(k, PROMPTS[k], name) for k, name in enumerate(names)]
        found = generate(worker, lines, seed=seed)
        for line, prompt, tokens in zip(lines, PROMPTS, found, strict=True):
            following = {name: model.follows(prompt, tokens) for name, model in plain.items()}
            assert following == {name: name == line.adapter for name in plain}
    worker.close()


def test_an_adapter_may_be_scaled_and_come_back_under_its_name(adapters, expected):
    worker = load(BASE)
    for path, scale in [
        (adapters["a"], 1.0),
        (adapters["b"], 1.0),
        (adapters["a"], 0.3),
        (adapters["a"], 0.0),
    ]:
        worker.load_adapter(Adapter(name="x", path=path, scale=scale), 5)
        assert generate(worker, [Line(1, PROMPTS[1], "x")]) == [plain_tokens(BASE, PROMPTS[1], path, scale)]
        worker.unload_adapter("x")  # it is the one that was used last
        assert generate(worker, [Line(1, PROMPTS[1], None)]) == [expected[None, 1]]
    worker.load_adapter(Adapter(name="x", path=adapters["a"]), None)
    worker.close()


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_weights_that_are_packed_anew_for_the_cpu(kind, tmp_path):
    """llama.cpp stores such weights in a layout of its own, where an adapter cannot go."""
    make_checkpoint(
        "llama", tmp_path, hidden_size=256, num_attention_heads=8, head_dim=32, intermediate_size=512
    )
    base = export_gguf(tmp_path, tmp_path / "m.gguf", kind).path
    headers = Checkpoint(tmp_path).headers
    save_peft(
        tmp_path / "a", {name: header.shape for name, header in headers.items() if LINEAR.fullmatch(name)}
    )
    path = export_adapter(tmp_path, tmp_path / "a", tmp_path / "a.gguf").path
    prompt = [token % 300 for token in PROMPTS[2]]
    worker = load(base)
    worker.load_adapter(Adapter(name="a", path=path), None)
    (found,) = generate(worker, [Line(0, prompt, "a")])
    assert found == plain_tokens(base, prompt, path)
    assert found != plain_tokens(base, prompt)
    worker.close()


# The order of calls, with a context that records them


def begin(seq, *tokens, adapter):
    return SequenceStart(seq, tokens, len(tokens), GREEDY, seed=0, adapter=adapter)


def chunk(seq, tokens, start=0):
    return Chunk(seq, tuple(tokens), start, tuple(range(10 * seq, 10 * seq + 10)), Wants.TOKEN)


def scripted(**changes):
    context = ScriptedContext(**changes)
    for name in "ab":
        context.load_adapter(Adapter(name=name, path=Path()))
    return make(context), context


def test_an_adapter_is_set_before_a_step_and_only_where_it_changes():
    worker, context = scripted()
    starts = (begin(0, 1, adapter=None), begin(1, 2, adapter="a"), begin(2, 3, adapter="a"))
    worker.execute(Batch((chunk(0, [1]),), starts))
    worker.execute(Batch((chunk(1, [2]), chunk(2, [3]))))
    worker.execute(Batch((), (), (2,)))
    worker.execute(Batch((chunk(1, [3], 1),)))
    assert context.switches == ["a"]
    worker.execute(Batch((chunk(0, [2], 1),)))
    worker.execute(Batch((chunk(2, [9]),), (begin(2, 9, adapter="b"),), (2,)))
    assert context.switches == ["a", None, "b"]


def test_a_prefix_that_was_lost_is_computed_again_under_its_own_adapter():
    worker, context = scripted()
    worker.execute(Batch((chunk(0, range(8)),), (begin(0, *range(8), adapter="a"),)))
    worker.execute(Batch((chunk(1, [3]),), (begin(1, 3, adapter="b"),)))
    context.code = lambda call: -1
    with pytest.raises(WorkerError):
        worker.execute(Batch((chunk(1, [4], 1),)))
    context.code = lambda call: 0
    assert worker.execute(Batch((chunk(0, [8], 8),))).token_ids == [9]
    assert context.adapter == "a"
    assert context.calls[-1][0] == list(range(9))


def test_two_adapters_in_a_step_are_refused():
    worker, context = scripted()
    starts = (begin(0, 1, adapter="a"), begin(1, 2, adapter="b"))
    with pytest.raises(WorkerError, match=r"under one adapter, not under '[ab]', '[ab]'"):
        worker.execute(Batch((chunk(0, [1]), chunk(1, [2])), starts))
    assert context.calls == []


# Files


def write_adapter(path, tensors=None, architecture="llama", method="lora", alpha=8.0, **said):
    writer = GGUFWriter(path, architecture)
    writer.add_type(said.pop("type", "adapter"))
    if method is not None:
        writer.add_string("adapter.type", method)
    if alpha is not None:
        (writer.add_float32 if isinstance(alpha, float) else writer.add_uint32)("adapter.lora.alpha", alpha)
    for key, values in said.items():
        writer.add_array(key.replace("__", "."), values)
    for name, array in (pair("blk.0.attn_q.weight") if tensors is None else tensors).items():
        if array.dtype == np.uint8:
            writer.add_tensor(name, array, raw_dtype=Kind.Q4_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(name, rank=4, inputs=256, outputs=256, dtype=np.float32):
    return {
        f"{name}.lora_a": np.zeros((rank, inputs), dtype),
        f"{name}.lora_b": np.zeros((outputs, rank), dtype),
    }


NAME = "blk.0.attn_q.weight"
DOWN, UP = f"{NAME}.lora_a", f"{NAME}.lora_b"
WHOLE = pair(NAME)


def file(tensors=None, **said):
    """Makes an adapter's file."""
    return lambda path: write_adapter(path, tensors, **said)


EMBEDDING = {
    f"token_embd.weight.lora_{k}": np.zeros((rows, 4), np.float32) for k, rows in [("a", 4096), ("b", 256)]
}
FOUR_BITS = {DOWN: quantize(np.zeros((4, 256), np.float32), Kind.Q4_0), UP: WHOLE[UP]}
DAMAGED = {
    "a model": (
        lambda path: path.write_bytes(BASE.read_bytes()),
        "no LoRA adapter but .* general.type 'model'",
    ),
    "text": (lambda path: path.write_text("hello"), "no GGUF file: it begins with b'hell'"),
    "other method": (file(method="ia3"), "GGUF file of adapter.type 'ia3'"),
    "no method": (file(method=None), "GGUF file of adapter.type None"),
    "other family": (file(architecture="qwen2"), "made for the architecture 'qwen2'"),
    "whole alpha": (file(alpha=8), "adapter.lora.alpha is not a number of the type f32"),
    "no tensors": (file({}), "the adapter has no tensors"),
    "half a pair": (file({UP: WHOLE[UP]}), "the other half of .*lora_b' is missing"),
    "a vector": (file(pair("blk.0.attn_norm.weight", outputs=1)), "attn_norm.weight', which is no matrix"),
    "another layer": (file(pair("blk.9.attn_q.weight")), "'blk.9.attn_q.weight', which is no matrix of this"),
    "other inputs": (file(pair(NAME, inputs=128)), r"shapes \[128, 4\] and \[4, 256\]"),
    "other outputs": (file(pair(NAME, outputs=128)), "it is made for another model"),
    "two ranks": (file({DOWN: WHOLE[DOWN][:3], UP: WHOLE[UP]}), r"shapes \[256, 3\] and \[4, 256\]"),
    "rank 0": (file(pair(NAME, rank=0)), r"shapes \[256, 0\] and \[0, 256\]"),
    "whole numbers": (file(pair(NAME, dtype=np.int32)), "of type I32; allowed: F32, F16, BF16, Q8_0"),
    "four bits": (file(FOUR_BITS), "of type Q4_0"),
    "truncated": (lambda path: path.write_bytes(write_adapter(path).read_bytes()[:-64]), "is truncated"),
    "a folder": (
        lambda path: path.mkdir(),
        "is a folder; .* which python -m millstream.*export.adapter writes",
    ),
    "nothing": (lambda path: None, "cannot be read"),
}
UNSUPPORTED = {
    "activated": (file(adapter__alora__invocation_tokens=[1]), "is an activated LoRA"),
    "a norm": (
        file(WHOLE | {"blk.0.attn_norm.weight": np.zeros(256, np.float32)}),
        "norm.weight'; only pairs",
    ),
    "tied head": (file(EMBEDDING), "'token_embd.weight', which llama.cpp does only where"),
}


@pytest.fixture(scope="module")
def worker():
    worker = load(BASE)
    yield worker
    worker.close()


@pytest.mark.parametrize("case", [*DAMAGED, *UNSUPPORTED])
def test_files_that_cannot_be_used_are_named(case, worker, tmp_path, expected):
    error = NotSupported if case in UNSUPPORTED else ModelFormatError
    make_file, message = (DAMAGED | UNSUPPORTED)[case]
    path = tmp_path / "adapter.gguf"
    make_file(path)
    with pytest.raises(error, match=message) as caught:
        worker.load_adapter(Adapter(name="x", path=path), None)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert generate(worker, [Line(0, PROMPTS[0], None)], 2) == [expected[None, 0][:2]]


def test_ranks_have_a_limit(worker, tmp_path):
    path = write_adapter(tmp_path / "a.gguf", pair(NAME, 8) | pair("blk.1.attn_q.weight", 3))
    assert check_adapter(path, read_model(BASE), 8) == 8
    with pytest.raises(LimitExceeded, match=r"a.gguf has rank 8; at most 7 is allowed"):
        worker.load_adapter(Adapter(name="x", path=path), 7)
