"""Embeddings of models that generate: transformers' hidden states, in any chunks and beside texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from millstream.backends.torch.backend import TorchBackend
from millstream.backends.worker import EmbeddingSpec, Worker
from millstream.errors import WorkerError
from millstream.scheduler.batch import Batch, Chunk, Pooling, SequenceStart, Wants
from millstream.scheduler.sampling_params import SamplingParams

from ..embedder import embed, error
from .checkpoints import VOCAB, greedy, make_model, save_checkpoint
from .driver import GREEDY
from .encoder_files import hidden_states, pooled, save_encoder, write_modules
from .encoders.test_encoder import config_of

TOLERANCE = 2e-5
PROMPTS = [[5, 17, 99, 4, 100, 33, 7, 8, 90, 61, 30], [3], [44, 90, 2, 61, 12, 13, 77, 5]]


def load(folder: Path, **changes: Any) -> Worker:
    backend = TorchBackend()
    config = config_of(**{"max_length": 64, **changes})
    return backend.load(backend.inspect("tiny", folder), config, lambda what, share: None)


def save_gpt2(folder: Path) -> PreTrainedModel:
    config = AutoConfig.for_model("gpt2", vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.train(False)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "olmo2", "glm4", "granite", "mistral"])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_native_models(family: str, chunk: int, tmp_path: Path) -> None:
    model = save_checkpoint(family, tmp_path)
    worker = load(tmp_path)
    assert worker.spec.embedding == EmbeddingSpec(size=48, pooling=Pooling.LAST)
    assert (worker.spec.generates, worker.spec.chunks_prompts) == (True, True)
    for pooling in Pooling:
        expected = [pooled(hidden_states(model, prompt), pooling) for prompt in PROMPTS]
        assert error(embed(worker, PROMPTS, pooling, chunk), expected) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_other_models_through_transformers(chunk: int, tmp_path: Path) -> None:
    model = save_gpt2(tmp_path)
    worker = load(tmp_path)
    assert worker.spec.embedding == EmbeddingSpec(size=48, pooling=Pooling.LAST)
    for pooling in Pooling:
        expected = [pooled(hidden_states(model, prompt), pooling) for prompt in PROMPTS]
        assert error(embed(worker, PROMPTS, pooling, chunk), expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["native", "transformers"])
def test_texts_and_embeddings_in_the_same_steps(kind: str, tmp_path: Path) -> None:
    model = save_checkpoint("llama", tmp_path) if kind == "native" else save_gpt2(tmp_path)
    worker = load(tmp_path)
    text, prompt = PROMPTS[0], PROMPTS[2]
    starts = (
        SequenceStart(0, tuple(text), len(text), GREEDY, seed=0),
        SequenceStart(1, tuple(prompt), len(prompt), SamplingParams(), seed=0, pooling=Pooling.MEAN),
    )
    tokens = list(text)
    position = 0
    for step in range(len(prompt)):
        chunks = (
            Chunk(
                1, (prompt[step],), step, (4,), Wants.EMBEDDING if step == len(prompt) - 1 else Wants.NOTHING
            ),
            Chunk(0, tuple(tokens[position:]), position, (1, 0, 2), Wants.TOKEN),
        )
        position = len(tokens)
        result = worker.execute(Batch(chunks, starts if step == 0 else ()))
        assert result.token_ids[0] is None
        assert result.token_ids[1] is not None
        tokens.append(result.token_ids[1])
    assert tokens[len(text) :] == greedy(model, text, len(prompt))
    assert error(result.embeddings[1], hidden_states(model, prompt).mean(0)) < TOLERANCE


def test_bfloat16_embeddings_do_not_depend_on_company(tmp_path: Path) -> None:
    model = save_checkpoint("llama", tmp_path)
    worker = load(tmp_path, dtype="bfloat16")
    together = embed(worker, PROMPTS, Pooling.LAST)
    expected = [hidden_states(model, prompt)[-1] for prompt in PROMPTS]
    assert 1e-4 < error(together, expected) < 0.1
    alone = [embed(worker, [prompt], Pooling.LAST)[0] for prompt in PROMPTS]
    assert error(alone, together) < 0.02


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_causal_model_without_a_head(quantization: str, tmp_path: Path) -> None:
    """The class that the checkpoint names has none, so that only embeddings can be had, in chunks."""
    model = save_checkpoint("llama", tmp_path / "whole")
    body = AutoModel.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    body.save_pretrained(tmp_path)
    write_modules(tmp_path, "Pooling", "Normalize", pooling={"pooling_mode_mean_tokens": True}, max_length=50)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    assert (info.architecture, info.max_length) == ("LlamaModel", 50)
    assert info.num_parameters == body.num_parameters()
    whole = backend.inspect("whole", tmp_path / "whole")
    config = config_of(max_length=50, quantization=quantization)
    head = backend.memory_needs(whole, config).weights - backend.memory_needs(info, config).weights
    assert head >= VOCAB * 48
    worker = backend.load(info, config, lambda what, share: None)
    assert (worker.spec.generates, worker.spec.chunks_prompts) == (False, True)
    assert worker.spec.embedding == EmbeddingSpec(size=48, pooling=Pooling.MEAN)
    expected = [hidden_states(model, prompt).mean(0) for prompt in PROMPTS]
    assert error(embed(worker, PROMPTS, chunk=3), expected) < (TOLERANCE if quantization == "none" else 0.1)
    start = SequenceStart(0, (5,), 1, GREEDY, seed=0)
    with pytest.raises(WorkerError, match="a model without a head was asked for a token"):
        worker.execute(Batch((Chunk(0, (5,), 0, (0,), Wants.TOKEN),), (start,)))


def test_a_generating_model_in_a_folder_of_sentence_transformers(tmp_path: Path) -> None:
    model = save_checkpoint("qwen3", tmp_path)
    write_modules(tmp_path, "Pooling", "Normalize", pooling={"pooling_mode_cls_token": True})
    worker = load(tmp_path)
    assert worker.spec.generates
    assert worker.spec.embedding == EmbeddingSpec(size=48, pooling=Pooling.CLS)
    expected = [hidden_states(model, prompt)[0] for prompt in PROMPTS]
    assert error(embed(worker, PROMPTS, Pooling.CLS, 3), expected) < TOLERANCE


def test_a_last_state_behind_a_shared_prefix(tmp_path: Path) -> None:
    """The blocks of the prefix are another sequence's."""
    model = save_checkpoint("llama", tmp_path)
    worker = load(tmp_path)
    first = [*range(20, 36), 7]
    second = [*range(20, 36), 90, 3]
    starts = (SequenceStart(0, tuple(first), len(first), GREEDY, seed=0),)
    worker.execute(Batch((Chunk(0, tuple(first), 0, (3, 1, 5), Wants.TOKEN),), starts))
    starts = (SequenceStart(1, tuple(second), len(second), GREEDY, seed=0, pooling=Pooling.LAST),)
    result = worker.execute(Batch((Chunk(1, (90, 3), 16, (3, 1, 6), Wants.EMBEDDING),), starts))
    assert error(result.embeddings[1], hidden_states(model, second)[-1]) < TOLERANCE


def test_the_same_pieces_give_the_same_bits(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    worker = load(tmp_path)
    found = [embed(worker, PROMPTS, chunk=3) for _ in range(2)]
    np.testing.assert_array_equal(*found)


def test_encoders_are_told_from_their_causal_kin(tmp_path: Path) -> None:
    save_encoder("bert", tmp_path)
    assert TorchBackend().inspect("tiny", tmp_path).architecture == "BertModel"
    assert not load(tmp_path).spec.generates
