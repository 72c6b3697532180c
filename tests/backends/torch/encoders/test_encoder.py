"""Encoders: the hidden states that transformers computes of each sequence alone, in any company."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from millstream.backends.torch.backend import TorchBackend
from millstream.backends.torch.encoders.encoder import Encoder, load_encoder
from millstream.backends.torch.encoders.padding import GROUP_TOKENS, MAX_PADDING, groups
from millstream.backends.worker import Adapter, EmbeddingSpec, Worker, WorkerConfig
from millstream.errors import InvalidArgument, ModelFormatError, NotSupported, WorkerError
from millstream.scheduler.batch import Batch, Chunk, Pooling, SequenceStart, Wants
from millstream.scheduler.sampling_params import SamplingParams

from ...embedder import embed, error
from ..encoder_files import (
    ENCODERS,
    HIDDEN,
    LENGTH,
    VOCAB,
    hidden_states,
    pooled,
    save_encoder,
    write_dense,
    write_modules,
)

TOLERANCE = 1e-5
"""In float32: length of a difference as a share of the embedding's."""


def config_of(dtype: str = "float32", **changes: Any) -> WorkerConfig:
    numbers = {"max_length": LENGTH, "max_num_seqs": 8, "max_num_batched_tokens": 512, "num_blocks": 200}
    return WorkerConfig(device="cpu", dtype=dtype, block_size=8, threads=1, **{**numbers, **changes})


def load(folder: Path, dtype: str = "float32", **changes: Any) -> Worker:
    backend = TorchBackend()
    return backend.load(
        backend.inspect("tiny", folder), config_of(dtype, **changes), lambda what, share: None
    )


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = random.Random(len(lengths))
    return [[rng.randrange(5, VOCAB) for _ in range(length)] for length in lengths]


PROMPTS = prompts_of(1, 7, 30, LENGTH, 2, 29, 31, 7)


@pytest.mark.parametrize("kind", ENCODERS)
def test_embeddings_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = save_encoder(kind, tmp_path)
    info = TorchBackend().inspect("tiny", tmp_path)
    assert (info.max_length, info.vocab_size) == (LENGTH, VOCAB)
    worker = load(tmp_path)
    for pooling in Pooling:
        expected = [pooled(hidden_states(model, prompt), pooling) for prompt in PROMPTS]
        together = embed(worker, PROMPTS, pooling)
        assert error(together, expected) < TOLERANCE
        assert error(embed(worker, PROMPTS[::-1], pooling)[::-1], together) < TOLERANCE
        alone = [embed(worker, [prompt], pooling)[0] for prompt in PROMPTS]
        assert error(alone, together) < TOLERANCE
    without = pooled(hidden_states(model, PROMPTS[2][:-1]), Pooling.CLS)
    first = pooled(hidden_states(model, PROMPTS[2]), Pooling.CLS)
    assert error(without, first) > 100 * TOLERANCE, "the first token sees the last one"


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "distilbert"])
def test_the_head_for_hidden_tokens_is_left_away(kind: str, tmp_path: Path) -> None:
    model = save_encoder(kind, tmp_path, AutoModelForMaskedLM)
    worker = load(tmp_path)
    expected = [hidden_states(model, prompt).mean(0) for prompt in PROMPTS]
    assert error(embed(worker, PROMPTS), expected) < TOLERANCE


def test_what_the_spec_says(tmp_path: Path) -> None:
    save_encoder("bert", tmp_path)
    spec = load(tmp_path, num_blocks=50).spec
    assert (spec.generates, spec.chunks_prompts, spec.shares_prefixes, spec.takes_adapters) == (False,) * 4
    assert spec.embedding == EmbeddingSpec(size=HIDDEN, pooling=Pooling.MEAN)
    assert (spec.num_blocks, spec.max_length, spec.dtype) == (50, LENGTH, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shorter_dtypes(dtype: str, tmp_path: Path) -> None:
    model = save_encoder("bert", tmp_path)
    found = embed(load(tmp_path, dtype), PROMPTS)
    expected = [hidden_states(model, prompt).mean(0) for prompt in PROMPTS]
    assert 1e-5 < error(found, expected) < 0.03


def test_a_causal_model_that_the_native_decoder_does_not_run(tmp_path: Path) -> None:
    """Its first token sees nothing but itself, and padding behind a sequence is seen by nobody."""
    model = save_encoder("gpt_neox", tmp_path)
    worker = load(tmp_path)
    assert (worker.spec.generates, worker.spec.chunks_prompts) == (False, False)
    for pooling in Pooling:
        expected = [pooled(hidden_states(model, prompt), pooling) for prompt in PROMPTS]
        assert error(embed(worker, PROMPTS, pooling), expected) < TOLERANCE


@pytest.mark.parametrize("changes", [{"use_bidirectional_attention": True}, {"is_causal": False}])
def test_a_decoder_whose_tokens_see_both_ways(changes: dict[str, bool], tmp_path: Path) -> None:
    kind = "gemma3_text" if "use_bidirectional_attention" in changes else "qwen2"
    more = {"num_key_value_heads": 2, "head_dim": 12, "sliding_window": 8, **changes}
    model = save_encoder(kind, tmp_path, **more)
    worker = load(tmp_path)
    assert not worker.spec.chunks_prompts
    expected = [hidden_states(model, prompt)[0] for prompt in PROMPTS]
    assert error(embed(worker, PROMPTS, Pooling.CLS), expected) < TOLERANCE
    shorter = [hidden_states(model, prompt[:-1])[0] for prompt in PROMPTS[1:3]]
    assert error(shorter, expected[1:3]) > 100 * TOLERANCE


# Folders of sentence-transformers


@pytest.mark.parametrize(
    ("name", "pooling"), [("cls_token", "cls"), ("mean_tokens", "mean"), ("lasttoken", "last")]
)
def test_pooling_of_the_folder(name: str, pooling: str, tmp_path: Path) -> None:
    model = save_encoder("bert", tmp_path)
    flags = {f"pooling_mode_{other}": other == name for other in ("cls_token", "mean_tokens", "lasttoken")}
    write_modules(tmp_path, "Pooling", "Normalize", pooling=flags, max_length=40)
    assert TorchBackend().inspect("tiny", tmp_path).max_length == 40
    worker = load(tmp_path, max_length=40)
    assert worker.spec.embedding == EmbeddingSpec(size=HIDDEN, pooling=Pooling(pooling))
    prompt = PROMPTS[2]
    found = embed(worker, [prompt], Pooling(pooling))
    assert error(found, pooled(hidden_states(model, prompt), Pooling(pooling))) < TOLERANCE


def test_dense_layers_are_applied(tmp_path: Path) -> None:
    model = save_encoder("bert", tmp_path)
    write_modules(tmp_path, "Pooling", "Dense", "Dense", "Normalize")
    wide, shift = write_dense(tmp_path / "2_Dense", HIDDEN, 70)
    narrow, _ = write_dense(tmp_path / "3_Dense", 70, 20, bias=False, activation="Identity")
    worker = load(tmp_path)
    assert worker.spec.embedding == EmbeddingSpec(size=20, pooling=Pooling.MEAN)
    means = torch.tensor(np.array([hidden_states(model, prompt).mean(0) for prompt in PROMPTS]))
    expected = torch.tanh(means @ wide.T + shift) @ narrow.T
    assert error(embed(worker, PROMPTS), expected.numpy()) < TOLERANCE


def test_dense_layers_that_do_not_fit(tmp_path: Path) -> None:
    save_encoder("bert", tmp_path)
    write_modules(tmp_path, "Pooling", "Dense")
    write_dense(tmp_path / "2_Dense", HIDDEN + 1, 70)
    with pytest.raises(ModelFormatError, match="2_Dense takes vectors of 49 numbers; 48 come in"):
        load(tmp_path)


# What is refused


def test_classifiers_give_nothing(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bert", architectures=["BertForSequenceClassification"])
    config.save_pretrained(tmp_path)
    save_encoder("bert", tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(NotSupported, match="is a BertForSequenceClassification, which gives neither"):
        TorchBackend().inspect("tiny", tmp_path)


def test_what_an_encoder_has_nothing_of(tmp_path: Path) -> None:
    save_encoder("bert", tmp_path)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    with pytest.raises(NotSupported, match="quantization 'int8' needs a family that the native decoder runs"):
        backend.memory_needs(info, config_of(quantization="int8"))
    with pytest.raises(InvalidArgument, match="kv_cache_dtype is 'int8'; allowed: 'auto', because BertModel"):
        backend.memory_needs(info, config_of(kv_cache_dtype="int8"))
    with pytest.raises(NotSupported, match="adapter 'a'"):
        load(tmp_path).load_adapter(Adapter(name="a", path=tmp_path), None)


def test_memory_is_bounded_by_a_group(tmp_path: Path) -> None:
    model = save_encoder("bert", tmp_path)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    small, large, huge = (
        backend.memory_needs(info, config_of(max_num_batched_tokens=tokens)) for tokens in (512, 8192, 65536)
    )
    assert small.kv_per_block == 1
    assert small.weights == 4 * model.num_parameters()
    assert small.activations < large.activations == huge.activations


def test_missing_weights(tmp_path: Path) -> None:
    save_encoder("bert", tmp_path, num_hidden_layers=1)
    config = AutoConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = 2
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelFormatError, match=r"do not fit BertModel: 16 missing keys \(encoder\.layer\.1"):
        load(tmp_path)


class Peeks(torch.nn.Module):
    """Gives every token the mean of the whole batch."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.ones(*input_ids.shape, 3) * input_ids.float().mean(),)


def test_a_model_that_sees_its_company_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_encoder("bert", tmp_path)
    info = TorchBackend().inspect("tiny", tmp_path)
    module: Any = Peeks()
    module.config = AutoConfig.from_pretrained(tmp_path)
    monkeypatch.setattr(
        "millstream.backends.torch.encoders.encoder.read_module", lambda *args, **options: module
    )
    with pytest.raises(NotSupported, match="Peeks gives a sequence other hidden states beside others than"):
        load_encoder(info, config_of(), lambda what, share: None)


# Batches


def start_of(seq: int, *tokens: int) -> SequenceStart:
    return SequenceStart(seq, tokens, len(tokens), SamplingParams(), seed=0, pooling=Pooling.MEAN)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    save_encoder("bert", tmp_path)
    return load(tmp_path)


def test_prompts_in_pieces_are_refused(worker: Worker) -> None:
    chunk = Chunk(0, (5, 6), 0, (0,), Wants.NOTHING)
    with pytest.raises(WorkerError, match="sequence 0 comes in chunks"):
        worker.execute(Batch((chunk,), (start_of(0, 5, 6, 7),)))
    with pytest.raises(WorkerError, match="sequence 0 comes in chunks"):
        worker.execute(Batch((Chunk(0, (7,), 2, (0,), Wants.EMBEDDING),)))


def test_a_closed_encoder_executes_nothing(worker: Worker) -> None:
    assert worker.execute(Batch((), (), (3,))).token_ids == []
    worker.close()
    worker.close()
    with pytest.raises(WorkerError, match="closed"):
        worker.execute(Batch(()))


def test_hidden_states_that_are_no_numbers_fail_their_sequence_only(worker: Worker, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[13] = torch.nan
    model.save_pretrained(tmp_path)
    chunks = (Chunk(0, (5, 6, 7), 0, (0,), Wants.EMBEDDING), Chunk(1, (13, 5), 0, (1,), Wants.EMBEDDING))
    result = load(tmp_path).execute(Batch(chunks, (start_of(0, 5, 6, 7), start_of(1, 13, 5))))
    assert list(result.embeddings) == [0]
    assert result.errors == {1: "The model's hidden states are not finite numbers."}


def test_groups_hold_every_sequence_once_and_little_padding() -> None:
    rng = random.Random(4)
    for count in (1, 2, 40, 400):
        lengths = [rng.randint(1, rng.choice([8, 64, 512, 9000])) for _ in range(count)]
        found = list(groups(lengths))
        assert sorted(i for group in found for i in group) == list(range(count))
        for group in found:
            padded = len(group) * max(lengths[i] for i in group)
            assert len(group) == 1 or padded <= GROUP_TOKENS
            assert (padded - sum(lengths[i] for i in group)) * MAX_PADDING <= padded
    assert list(groups([])) == []
    assert list(groups([9] * 5)) == [[0, 1, 2, 3, 4]]


def test_an_empty_step_is_no_group() -> None:
    module: Any = Peeks()
    assert list(Encoder(module, 0, 3).states([])) == []
