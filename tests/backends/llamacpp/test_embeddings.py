"""Embedding models: encoders and causal ones, against torch, in any company and in any chunks."""

import random
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from millstream.backends.answers import Sampler
from millstream.backends.export.checkpoint import export_gguf
from millstream.backends.llamacpp.backend import LlamaCppBackend
from millstream.backends.llamacpp.layout import choose_layout
from millstream.backends.llamacpp.readers import Reader
from millstream.backends.llamacpp.worker import LlamaCppWorker
from millstream.backends.worker import Adapter, EmbeddingSpec, WorkerConfig, WorkerSpec
from millstream.errors import NotSupported, WorkerError
from millstream.scheduler.batch import Batch, Chunk, Pooling, SequenceStart, Wants
from millstream.scheduler.sampling_params import SamplingParams

from ..export.test_checkpoint import GPT2
from ..torch.checkpoints import save_checkpoint
from .plain_llama import plain_llama
from .scripted_context import ScriptedContext
from .small_models import LENGTH, hidden_states, save_bert, vocabulary, with_key
from .small_tokenizers import save_byte_level

BLOCK = 8
TOLERANCE = 3e-3
"""Length of a difference, as a share of the embedding's: keys, values and the sums over them have 16 bits."""


def config(**changes) -> WorkerConfig:
    numbers = {"max_length": LENGTH, "max_num_seqs": 6, "max_num_batched_tokens": 256, "num_blocks": 80}
    return WorkerConfig(device="cpu", dtype="f32", block_size=BLOCK, threads=1, **{**numbers, **changes})


def load(path, **changes):
    backend = LlamaCppBackend()
    return backend.load(backend.inspect("m", path), config(**changes), lambda what, share: None)


class Embedder:
    """Sequences of one worker, each computed as it is asked."""

    def __init__(self, worker):
        self.worker = worker
        self.first_block = 0

    def embed(self, prompts, pooling=Pooling.MEAN, chunk=10**6):
        """Embeddings of prompts that run together, so many tokens of each a step."""
        per_prompt = -(-LENGTH // BLOCK)
        tables = [tuple(range(i * per_prompt, (i + 1) * per_prompt)) for i in range(len(prompts))]
        found, position = {}, 0
        params = SamplingParams()
        started = tuple(
            SequenceStart(seq, tuple(prompt), len(prompt), params, seed=0, pooling=pooling)
            for seq, prompt in enumerate(prompts)
        )
        while len(found) < len(prompts):
            chunks = []
            for seq, prompt in enumerate(prompts):
                tokens = tuple(prompt[position : position + chunk])
                wants = Wants.EMBEDDING if position + len(tokens) == len(prompt) else Wants.NOTHING
                if tokens:
                    chunks.append(Chunk(seq, tokens, position, tables[seq], wants))
            result = self.worker.execute(Batch(tuple(chunks), started))
            assert not result.errors
            assert set(result.embeddings) == {each.seq for each in chunks if each.wants is Wants.EMBEDDING}
            found.update(result.embeddings)
            started, position = (), position + chunk
        self.worker.execute(Batch((), (), tuple(range(len(prompts)))))
        return np.array([found[seq] for seq in range(len(prompts))])


def prompts_of(vocab_size, lengths=(1, 7, 30, 64, 2, 90), seed=3):
    rng = random.Random(seed)
    return [[rng.randrange(5, vocab_size) for _ in range(length)] for length in lengths]


def pooled(states, pooling):
    return {Pooling.MEAN: states.mean(0), Pooling.CLS: states[0], Pooling.LAST: states[-1]}[pooling]


def error(found, expected):
    """The largest relative length of a difference."""
    found, expected = np.atleast_2d(found), np.atleast_2d(expected)
    return (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "bert.gguf"
    model = save_bert(path)
    worker = load(path)
    yield model, Embedder(worker), path
    worker.close()


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    save_byte_level(*GPT2, folder, 300)
    model = save_checkpoint("llama", folder, vocab_size=320)
    plain = export_gguf(folder, folder / "plain.gguf", "f32").path
    path = with_key(plain, folder / "causal.gguf", "llama.pooling_type", 3)
    return model, path


def test_the_spec_of_an_encoder(bert):
    spec = bert[1].worker.spec
    assert (spec.generates, spec.chunks_prompts, spec.shares_prefixes, spec.takes_adapters) == (False,) * 4
    assert spec.embedding == EmbeddingSpec(size=64, pooling=Pooling.MEAN)


@pytest.mark.parametrize(("number", "pooling"), [(None, "mean"), (0, "mean"), (2, "cls"), (3, "last")])
def test_pooling_of_the_file(tmp_path, number, pooling):
    save_bert(tmp_path / "m.gguf", number)
    worker = load(tmp_path / "m.gguf")
    assert worker.spec.embedding.pooling is Pooling(pooling)
    worker.close()


@pytest.mark.parametrize("pooling", Pooling)
def test_embeddings_of_an_encoder_are_those_of_torch(bert, pooling):
    model, embedder, _ = bert
    prompts = prompts_of(len(vocabulary()))
    found = embedder.embed(prompts, pooling)
    expected = np.array([pooled(hidden_states(model, prompt), pooling) for prompt in prompts])
    assert error(found, expected) < TOLERANCE
    one_less = pooled(hidden_states(model, prompts[2][:-1]), pooling)
    assert error(one_less, expected[2]) > 5 * TOLERANCE, "what one token makes is more"


def test_prompts_of_an_encoder_do_not_see_their_company(bert):
    _, embedder, _ = bert
    prompts = prompts_of(len(vocabulary()))
    together = embedder.embed(prompts)
    alone = np.concatenate([embedder.embed([prompt]) for prompt in prompts])
    assert error(together, alone) < TOLERANCE
    again = embedder.embed(prompts[::-1])[::-1]
    assert error(again, alone) < TOLERANCE


def test_the_largest_step_of_an_encoder(tmp_path):
    model = save_bert(tmp_path / "m.gguf")
    worker = load(tmp_path / "m.gguf", max_num_seqs=300, max_num_batched_tokens=1200, num_blocks=4000)
    seats = worker.spec.max_num_seqs
    assert seats == 256
    prompts = prompts_of(len(vocabulary()), [4] * (seats - 1) + [LENGTH])
    found = Embedder(worker).embed(prompts)
    for index in (0, seats // 2, seats - 1):
        expected = hidden_states(model, prompts[index]).mean(0)
        assert error(found[index], expected) < TOLERANCE
    worker.close()


@pytest.mark.parametrize("num_blocks", [80, 30], ids=["streams", "unified"])
@pytest.mark.parametrize("pooling", Pooling)
def test_embeddings_of_a_causal_model_are_those_of_torch(causal, num_blocks, pooling):
    model, path = causal
    worker = load(path, num_blocks=num_blocks, max_num_seqs=3)
    assert worker.streams is (num_blocks == 80)
    assert worker.spec.embedding == EmbeddingSpec(size=48, pooling=Pooling.LAST)
    assert worker.spec.chunks_prompts
    prompts = prompts_of(320, (70, 1, 33))
    found = Embedder(worker).embed(prompts, pooling)
    expected = np.array([pooled(hidden_states(model, prompt), pooling) for prompt in prompts])
    assert error(found, expected) < TOLERANCE
    worker.close()


@pytest.mark.parametrize("num_blocks", [80, 30], ids=["streams", "unified"])
@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_a_causal_prompt_in_chunks_is_as_one_in_one_go(causal, num_blocks, chunk):
    worker = load(causal[1], num_blocks=num_blocks, max_num_seqs=3)
    prompts = prompts_of(320, (70, 12, 33))
    embedder = Embedder(worker)
    for pooling in Pooling:
        whole = np.concatenate([embedder.embed([prompt], pooling) for prompt in prompts])
        found = embedder.embed(prompts, pooling, chunk)
        assert error(found, whole) < TOLERANCE
    worker.close()


def test_more_tokens_than_rows_are_computed_in_several_calls(causal):
    model, path = causal
    worker = load(path, max_num_batched_tokens=256)
    prompts = prompts_of(320, (90, 90, 70))
    found = Embedder(worker).embed(prompts, Pooling.MEAN)
    expected = np.array([hidden_states(model, prompt).mean(0) for prompt in prompts])
    assert error(found, expected) < TOLERANCE
    worker.close()


def test_a_model_that_is_not_causal_but_has_a_cache(causal, tmp_path):
    """It is computed in one chunk, and a prompt leaves nothing behind."""
    plain = causal[1].with_name("plain.gguf")
    both_ways = with_key(plain, tmp_path / "m.gguf", "llama.attention.causal", False)
    worker = load(both_ways, max_num_batched_tokens=200)
    spec = worker.spec
    assert (spec.embedding.pooling, spec.chunks_prompts, spec.shares_prefixes) == (Pooling.MEAN, False, False)
    prompts = prompts_of(320, (50, 9, 90))
    embedder = Embedder(worker)
    together = embedder.embed(prompts)
    for prompt, found in zip(prompts, together, strict=True):
        assert error(embedder.embed([prompt])[0], found) < TOLERANCE
    first = [embedder.embed([[*prompts[1][:-1], last]], Pooling.CLS) for last in (10, 11)]
    assert error(*first) > 2 * TOLERANCE, "the first token sees the last one"
    worker.close()


# Models that generate


@pytest.fixture(scope="module")
def generating(causal):
    return causal[0], causal[1].with_name("plain.gguf")


@pytest.mark.parametrize("num_blocks", [80, 30], ids=["streams", "unified"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_generating_model_gives_embeddings_too(generating, num_blocks, chunk):
    model, path = generating
    worker = load(path, num_blocks=num_blocks, max_num_seqs=3)
    spec = worker.spec
    assert spec.embedding == EmbeddingSpec(size=48, pooling=Pooling.LAST)
    assert (spec.generates, spec.chunks_prompts, spec.takes_adapters) == (True, True, True)
    prompts = prompts_of(320, (70, 1, 33))
    for pooling in Pooling:
        found = Embedder(worker).embed(prompts, pooling, chunk)
        expected = np.array([pooled(hidden_states(model, prompt), pooling) for prompt in prompts])
        assert error(found, expected) < TOLERANCE
    worker.close()


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("num_blocks", [80, 30], ids=["streams", "unified"])
def test_tokens_are_the_same_beside_embeddings(generating, num_blocks, pooling):
    _, path = generating
    worker = load(path, num_blocks=num_blocks, max_num_seqs=3)
    text, prompt = prompts_of(320, (20, 24), seed=8)
    embedder = Embedder(worker)
    (expected,) = embedder.embed([prompt], pooling, 3)
    alone = generate_beside(worker, text)
    beside = generate_beside(worker, text, prompt, pooling)
    assert beside.tokens == alone.tokens
    close = pytest.approx([each.logprob for each in alone.logprobs], abs=1e-3)
    assert [each.logprob for each in beside.logprobs] == close
    assert error(beside.embedding, expected) < TOLERANCE
    worker.close()


@dataclass
class Generated:
    tokens: list
    logprobs: list
    embedding: tuple | None = None


def generate_beside(worker, text, prompt=(), pooling=None, count=8):
    """Greedy tokens of `text`, in the same steps as the chunks of `prompt`, three tokens each."""
    params = SamplingParams(temperature=0, logprobs=True)
    started = [SequenceStart(0, tuple(text), len(text), params, seed=0)]
    if prompt:
        params = SamplingParams()
        started.append(SequenceStart(1, tuple(prompt), len(prompt), params, seed=0, pooling=pooling))
    tokens, position, found = list(text), 0, Generated([], [])
    for step in range(count):
        chunks = [Chunk(0, tuple(tokens[position:]), position, (0, 1, 2, 3), Wants.TOKEN)]
        chunk = tuple(prompt[3 * step : 3 * step + 3])
        if chunk:
            wants = Wants.EMBEDDING if 3 * step + 3 >= len(prompt) else Wants.NOTHING
            chunks.insert(0, Chunk(1, chunk, 3 * step, (4, 5, 6, 7), wants))
        result = worker.execute(Batch(tuple(chunks), tuple(started)))
        position, started = len(tokens), []
        tokens.append(result.token_ids[-1])
        found.logprobs.append(result.logprobs[0])
        found.embedding = result.embeddings.get(1, found.embedding)
    worker.execute(Batch((), (), (0, 1)))
    found.tokens = tokens[len(text) :]
    return found


class StatesContext(ScriptedContext):
    """Gives [token, position] as hidden states; a token of 13 makes no number of them."""

    def decode(self, tokens, positions, lanes, wanted, states):
        self._states = [
            [token if token != 13 else np.nan, at] for token, at in zip(tokens, positions, strict=True)
        ]
        self._asked = wanted
        return super().decode(tokens, positions, lanes, wanted, states)

    def rows(self):
        states = np.array(self._states, np.float32)[self._asked]
        return states if self.kinds[-1] else super().rows()


def scripted(**changes):
    context = StatesContext(**changes)
    spec = WorkerSpec(
        vocab_size=32,
        max_length=64,
        block_size=4,
        num_blocks=100,
        max_num_seqs=8,
        max_num_batched_tokens=24,
        generates=False,
        embedding=EmbeddingSpec(size=2, pooling=Pooling.MEAN),
    )
    return LlamaCppWorker(spec, None, context, Reader(Sampler(32, 8, "cpu"))), context


def one_step(worker, *prompts, pooling=Pooling.MEAN):
    blocks = tuple(range(20))
    chunks = tuple(
        Chunk(seq, tuple(prompt), 0, tuple(20 * seq + b for b in blocks), Wants.EMBEDDING)
        for seq, prompt in enumerate(prompts)
    )
    params = SamplingParams()
    started = tuple(
        SequenceStart(each.seq, each.tokens, len(each.tokens), params, seed=0, pooling=pooling)
        for each in chunks
    )
    return worker.execute(Batch(chunks, started))


def test_what_is_no_number_is_an_error_of_that_sequence_alone():
    worker, _ = scripted()
    result = one_step(worker, [1, 2, 3], [5, 13], [7])
    assert result.embeddings == {0: (2.0, 1.0), 2: (7.0, 0.0)}
    assert result.errors == {1: "The model's hidden states are not finite numbers."}
    assert result.token_ids == [None] * 3


def test_a_step_that_is_too_long_for_one_call_is_pooled_over_several():
    worker, context = scripted(max_rows=5, max_tokens=5)
    result = one_step(worker, range(12), [4], [1, 3])
    assert result.embeddings == {0: (5.5, 5.5), 1: (4.0, 0.0), 2: (2.0, 0.5)}
    assert len(context.calls) == 3


def test_the_head_reads_only_what_must_be_read():
    """Of a sequence that is pooled by its last token, hidden states of no other are asked for."""
    worker, context = scripted()
    result = one_step(worker, [1, 2, 3], [5], [7, 8], pooling=Pooling.LAST)
    assert result.embeddings == {0: (3.0, 2.0), 1: (5.0, 0.0), 2: (8.0, 1.0)}
    assert context.kinds == [False, True]
    before, last = context.calls
    assert (sorted(before[0]), before[3]) == ([1, 2, 7], [])
    assert (sorted(last[0]), last[3]) == ([3, 5, 8], [0, 1, 2])


def test_calls_that_give_states_are_as_short_as_their_rows():
    worker, context = scripted(max_rows=5, max_tokens=24)
    one_step(worker, range(12), [4], [1, 3])
    assert context.kinds == [True] * 3
    assert [len(call[0]) for call in context.calls] == [5, 5, 5]


def test_one_that_has_no_room_before_its_last_token_is_unplaced():
    worker, context = scripted()
    context.code = lambda call: int(len(call[0]) > 3)
    result = one_step(worker, [1, 2], range(6), pooling=Pooling.LAST)
    assert (result.embeddings, result.unplaced) == ({0: (2.0, 1.0)}, {1})
    assert context.calls[-1][0] == [2]
    context.code = lambda call: 0
    assert one_step(worker, [1, 2], range(6), pooling=Pooling.LAST).embeddings[1] == (5.0, 5.0)


def test_a_prefix_that_was_lost_is_not_pooled_again():
    worker, context = scripted()
    blocks = tuple(range(9))
    start = SequenceStart(0, (1, 2, 3, 4, 5, 6), 6, SamplingParams(), seed=0, pooling=Pooling.MEAN)
    worker.execute(Batch((Chunk(0, (1, 2, 3, 4), 0, blocks, Wants.NOTHING),), (start,)))
    context.code = lambda call: -1
    with pytest.raises(WorkerError):
        worker.execute(Batch((Chunk(0, (5, 6), 4, blocks, Wants.EMBEDDING),)))
    context.code = lambda call: 0
    result = worker.execute(Batch((Chunk(0, (5, 6), 4, blocks, Wants.EMBEDDING),)))
    assert context.calls[-1][0] == [1, 2, 3, 4, 5, 6]
    assert result.embeddings == {0: (3.5, 2.5)}


def test_without_room_a_sequence_stays_unplaced_and_starts_again():
    worker, context = scripted()
    context.code = lambda call: int(len(call[0]) > 4)
    result = one_step(worker, [1, 2], range(6))
    assert (result.embeddings, result.unplaced) == ({0: (1.5, 0.5)}, {1})
    context.code = lambda call: 0
    assert one_step(worker, [1, 2], range(6)).embeddings[1] == (2.5, 2.5)


def test_adapters_are_refused(bert, tmp_path):
    with pytest.raises(NotSupported, match="adapter 'a': models that give embeddings take none on"):
        bert[1].worker.load_adapter(Adapter(name="a", path=tmp_path), None)


def test_models_that_are_not_causal_have_one_memory():
    layout = choose_layout(config(num_blocks=1), 4, is_causal=False)
    assert (layout.streams, layout.lanes, layout.cells) == (False, 4, 256)


# Tokenizer and memory

TEXTS = [
    "",
    "Hello, WORLD!",
    "the dogs jumped over  3 foxes",
    "don't see thing",
    "[MASK] ing [SEP]",
    "Ωmega 中 the",
    "é",
]


def reference_tokenizer():
    tokens = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def test_word_pieces_are_those_of_llamacpp_and_of_their_authors(bert):
    path = bert[2]
    backend = LlamaCppBackend()
    tokenizer = backend.load_tokenizer(backend.inspect("m", path))
    reference = reference_tokenizer()
    with plain_llama(path, vocab_only=True) as plain:
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert ids == plain.tokenize(text) == reference.encode(text).ids, text
            assert tokenizer.encode(text, add_special_tokens=False) == ids[1:-1]
            stream = tokenizer.stream()
            assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)
    assert tokenizer.decode(tokenizer.encode("the dogs jumped")) == "the dogs jumped"
    assert tokenizer.decode([2, 3], skip_special_tokens=False) == "[CLS][SEP]"


def test_memory_grows_with_what_must_be_computed_at_once(bert, causal):
    backend = LlamaCppBackend()
    encoder, decoder = (backend.inspect("m", path) for path in (bert[2], causal[1]))
    plain = backend.inspect("m", causal[1].with_name("plain.gguf"))
    small, large = (config(max_num_batched_tokens=tokens) for tokens in (512, 4096))
    needs = [backend.memory_needs(encoder, each) for each in (small, large)]
    assert needs[0].kv_per_block == 1
    rows = (4096 - 512) * (encoder.vocab_size + 2 * 64) * 4
    assert needs[1].activations - needs[0].activations > rows
    needs = [backend.memory_needs(decoder, each) for each in (small, large)]
    assert needs[0].activations == needs[1].activations
    assert needs[0].kv_per_block == backend.memory_needs(plain, small).kv_per_block > 1
