"""TorchWorker: what it makes of a Batch, and what of a model that fails."""

from pathlib import Path

import pytest
import torch

from millstream.backends.answers import Sampler
from millstream.backends.answers.prompt_scores import MAX_ROWS
from millstream.backends.machine.threads import ThreadChooser
from millstream.backends.torch.kernels.step_inputs import StepInputs
from millstream.backends.torch.model import StepOutputs
from millstream.backends.torch.worker import TorchWorker
from millstream.backends.worker import WorkerSpec
from millstream.errors import WorkerError
from millstream.scheduler.batch import Batch, Chunk, Pooling, SequenceStart, Wants
from millstream.scheduler.sampling_params import SamplingParams

from .checkpoints import greedy, save_checkpoint
from .driver import GREEDY, Driver, native_worker

VOCAB = 16


class RecordingModel:
    """Predicts the token after the one it reads; its hidden states are [token, position].

    `spoiled` positions give logits and hidden states that are no numbers.
    """

    def __init__(self) -> None:
        self.inputs: list[StepInputs] = []
        self.spoiled: set[int] = set()
        self.fails = False

    def forward(self, inputs: StepInputs) -> StepOutputs:
        if self.fails:
            raise RuntimeError("out of luck")
        self.inputs.append(inputs)
        read = inputs.token_ids[inputs.logit_rows]
        logits = torch.nn.functional.one_hot((read + 1) % VOCAB, VOCAB).float() * 9
        for k, row in enumerate(inputs.logit_rows.tolist()):
            if int(inputs.positions[row]) in self.spoiled:
                logits[k, 3] = torch.nan
        states = torch.stack((inputs.token_ids, inputs.positions), 1)[inputs.state_rows].float()
        for k, row in enumerate(inputs.state_rows.tolist()):
            if int(inputs.positions[row]) in self.spoiled:
                states[k, 0] = torch.nan
        return StepOutputs(logits, states)


@pytest.fixture
def model() -> RecordingModel:
    return RecordingModel()


@pytest.fixture
def worker(model: RecordingModel) -> TorchWorker:
    spec = WorkerSpec(
        vocab_size=VOCAB,
        max_length=1024,
        block_size=4,
        num_blocks=300,
        max_num_seqs=6,
        max_num_batched_tokens=999,
    )
    return TorchWorker(spec, model, Sampler(VOCAB, 6, "cpu"), threads=ThreadChooser(3, tunes=True))


def begin(
    seq: int,
    *tokens: int,
    params: SamplingParams = GREEDY,
    prompt: int | None = None,
    pooling: Pooling | None = None,
) -> SequenceStart:
    length = len(tokens) if prompt is None else prompt
    return SequenceStart(seq, tokens, length, params, seed=0, pooling=pooling)


def test_a_step_tells_how_many_threads_it_took_and_others_are_tried(worker: TorchWorker) -> None:
    worker.execute(Batch((Chunk(0, (1,), 0, (5,), Wants.TOKEN),), (begin(0, 1),)))
    steps = [Batch((Chunk(0, (1,), position, (5, 6, 7, 8, 9), Wants.TOKEN),)) for position in range(1, 20)]
    assert {worker.execute(step).threads for step in steps} == {1, 2, 3}


def test_a_mixed_batch_becomes_packed_rows(worker: TorchWorker, model: RecordingModel) -> None:
    starts = (begin(4, 1, 2, 3, 4, 5, 6), begin(0, 7), begin(2, 8, 9, 10))
    chunks = (
        Chunk(4, (1, 2, 3, 4, 5), 0, (9, 3), Wants.NOTHING),
        Chunk(0, (7,), 0, (5,), Wants.TOKEN),
        Chunk(2, (8, 9, 10), 0, (7,), Wants.TOKEN),
    )
    assert worker.execute(Batch(chunks, starts)).token_ids == [None, 8, 11]
    (inputs,) = model.inputs
    assert inputs.token_ids.tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert inputs.positions.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2]
    assert inputs.slot_mapping.tolist() == [36, 37, 38, 39, 12, 20, 28, 29, 30]
    assert inputs.query_starts == (0, 5, 6, 9)
    assert inputs.context_lengths == (5, 1, 3)
    assert inputs.block_tables.tolist() == [[9, 3], [5, 0], [7, 0]]
    assert inputs.logit_rows.tolist() == [5, 8]
    assert inputs.sequence_ids == (4, 0, 2)
    pair = (Chunk(2, (11,), 3, (7,), Wants.TOKEN), Chunk(4, (6,), 5, (9, 3), Wants.TOKEN))
    assert worker.execute(Batch(pair)).token_ids == [12, 7]
    inputs = model.inputs[1]
    assert inputs.slot_mapping.tolist() == [31, 13]
    assert inputs.block_tables.tolist() == [[7, 0], [9, 3]]
    worker.execute(Batch((Chunk(2, (12,), 4, (7, 1), Wants.TOKEN),)))
    assert model.inputs[2].slot_mapping.tolist() == [4]
    assert model.inputs[2].block_tables.tolist() == [[7, 1]]


def test_an_id_may_end_and_begin_in_one_batch(worker: TorchWorker, model: RecordingModel) -> None:
    worker.execute(Batch((Chunk(1, (1, 2, 3, 4, 5), 0, (9, 3), Wants.TOKEN),), (begin(1, 1, 2, 3, 4, 5),)))
    worker.execute(Batch((Chunk(1, (6,), 0, (2,), Wants.TOKEN),), (begin(1, 6),), (1,)))
    worker.execute(Batch((Chunk(1, (7, 8, 9, 10), 1, (2, 5), Wants.TOKEN),)))
    assert model.inputs[1].slot_mapping.tolist() == [8]
    assert model.inputs[2].slot_mapping.tolist() == [9, 10, 11, 20]


def test_a_batch_may_hold_no_chunks(worker: TorchWorker, model: RecordingModel) -> None:
    assert worker.execute(Batch((), (begin(1, 5),), ())).token_ids == []
    assert worker.execute(Batch((), (), (1,))).token_ids == []
    assert model.inputs == []


def test_nothing_wanted_of_the_whole_batch(worker: TorchWorker, model: RecordingModel) -> None:
    chunk = Chunk(1, (5, 6), 0, (0,), Wants.NOTHING)
    assert worker.execute(Batch((chunk,), (begin(1, 5, 6, 7),))).token_ids == [None]
    assert model.inputs[0].logit_rows.tolist() == []


def test_logits_that_are_no_numbers_fail_their_sequence_only(
    worker: TorchWorker, model: RecordingModel
) -> None:
    model.spoiled = {2}
    chunks = (
        Chunk(0, (1, 2), 0, (0,), Wants.TOKEN),
        Chunk(1, (3, 4, 5), 0, (1,), Wants.TOKEN),
        Chunk(2, (6,), 0, (2,), Wants.TOKEN),
    )
    result = worker.execute(Batch(chunks, (begin(0, 1, 2), begin(1, 3, 4, 5), begin(2, 6))))
    assert result.token_ids == [3, None, 7]
    assert list(result.errors) == [1]


def test_what_fails_in_a_step_is_a_worker_error(worker: TorchWorker, model: RecordingModel) -> None:
    model.fails = True
    chunk = Chunk(1, (5,), 0, (0,), Wants.TOKEN)
    with pytest.raises(WorkerError, match="RuntimeError while executing a batch: out of luck"):
        worker.execute(Batch((chunk,), (begin(1, 5),)))


def test_a_sequence_begins_anew_after_a_step_that_failed(worker: TorchWorker, model: RecordingModel) -> None:
    model.fails = True
    batch = Batch((Chunk(1, (5, 6), 0, (7,), Wants.TOKEN),), (begin(1, 5, 6, params=scored(0)),))
    with pytest.raises(WorkerError):
        worker.execute(batch)
    model.fails = False
    again = Batch((Chunk(1, (5, 6), 0, (3,), Wants.TOKEN),), (begin(1, 5, 6),))
    result = worker.execute(again)
    assert result.token_ids == [7]
    assert result.prompt_logprobs == {}
    assert model.inputs[0].slot_mapping.tolist() == [12, 13]


def test_a_closed_worker_executes_nothing(worker: TorchWorker) -> None:
    worker.close()
    worker.close()
    with pytest.raises(WorkerError, match="closed"):
        worker.execute(Batch(()))


def scored(top: int) -> SamplingParams:
    return SamplingParams(temperature=0, prompt_logprobs=top)


def test_prompt_logprobs_of_chunks(worker: TorchWorker) -> None:
    tokens = (1, 2, 5, 6, 7, 9)
    start = begin(3, *tokens, 10, 11, params=scored(1), prompt=6)
    other = begin(0, 4)
    found = []
    chunks = [
        (Chunk(3, (1, 2), 0, (0, 1), Wants.NOTHING), Chunk(0, (4,), 0, (5,), Wants.TOKEN)),
        (Chunk(0, (5,), 1, (5,), Wants.TOKEN), Chunk(3, (5,), 2, (0, 1), Wants.NOTHING)),
        (Chunk(3, (6, 7, 9, 10, 11), 3, (0, 1), Wants.TOKEN), Chunk(0, (6,), 2, (5,), Wants.TOKEN)),
        (Chunk(3, (12,), 8, (0, 1, 2), Wants.TOKEN),),
    ]
    for i, step in enumerate(chunks):
        result = worker.execute(Batch(step, (start, other) if i == 0 else ()))
        found.append(result.prompt_logprobs)
    assert [set(entry) for entry in found] == [{3}, {3}, {3}, set()]
    assert [len(entry[3]) for entry in found[:3]] == [2, 1, 3]
    entries = [entry for part in found[:3] for entry in part[3]]
    assert entries[0] is None
    expected = [True, False, True, True, False]
    assert [e is not None and e.logprob > -0.1 for e in entries[1:]] == expected
    assert [e.top[0][0] for e in entries[1:] if e is not None] == [token + 1 for token in tokens[:-1]]


def test_prompt_logprobs_take_few_rows_at_a_time(worker: TorchWorker, model: RecordingModel) -> None:
    prompts = [tuple((i * i) % VOCAB for i in range(n)) for n in (2 * MAX_ROWS + 40, 90)]
    starts = tuple(begin(i, *prompt, params=scored(0)) for i, prompt in enumerate(prompts))
    tables = (tuple(range(100)), tuple(range(100, 200)))
    chunks = tuple(Chunk(i, p, 0, tables[i], Wants.TOKEN) for i, p in enumerate(prompts))
    result = worker.execute(Batch((*chunks, Chunk(2, (3,), 0, (299,), Wants.TOKEN)), (*starts, begin(2, 3))))
    assert max(inputs.logit_rows.numel() for inputs in model.inputs) <= MAX_ROWS + 3
    for i, prompt in enumerate(prompts):
        entries = result.prompt_logprobs[i]
        assert len(entries) == len(prompt)
        likely = [entry is not None and entry.logprob > -0.1 for entry in entries]
        assert likely == [k > 0 and prompt[k] == (prompt[k - 1] + 1) % VOCAB for k in range(len(prompt))]
    assert result.token_ids == [(prompts[0][-1] + 1) % VOCAB, (prompts[1][-1] + 1) % VOCAB, 4]


@pytest.mark.parametrize("min_chunk", [1, 300])
def test_long_prompts_score_as_in_the_reference(min_chunk: int, tmp_path: Path) -> None:
    reference = save_checkpoint("qwen3", tmp_path)
    prompt = [3 + (7 * i * i + i) % 120 for i in range(MAX_ROWS + 70)]
    driver = Driver(native_worker(tmp_path, num_blocks=120), min_chunk=min_chunk, max_chunk=300)
    params = SamplingParams(temperature=0, prompt_logprobs=0, logprobs=True)
    outputs = driver.run([prompt, prompt[:30]], 4, params=params)
    assert outputs == [greedy(reference, prompt, 4), greedy(reference, prompt[:30], 4)]
    own = [entry for result in driver.results for entry in result.prompt_logprobs.get(0, ())][1:]
    own += [result.logprobs[0] for result in driver.results if 0 in result.logprobs]
    tokens = prompt + outputs[0]
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
    found = [entry.logprob for entry in own if entry is not None]
    assert found == pytest.approx([expected[i, t].item() for i, t in enumerate(tokens[1:])], abs=2e-4)


def test_texts_and_embeddings_in_one_batch(worker: TorchWorker, model: RecordingModel) -> None:
    starts = (
        begin(0, 1, 2, 3),
        begin(1, 4, 5, 6, 8, pooling=Pooling.MEAN),
        begin(2, 7, 8, pooling=Pooling.LAST),
        begin(3, 9, 2, pooling=Pooling.CLS),
    )
    chunks = (
        Chunk(1, (4, 5, 6), 0, (1,), Wants.NOTHING),
        Chunk(0, (1, 2, 3), 0, (0,), Wants.TOKEN),
        Chunk(2, (7, 8), 0, (2,), Wants.EMBEDDING),
        Chunk(3, (9, 2), 0, (3,), Wants.EMBEDDING),
    )
    result = worker.execute(Batch(chunks, starts))
    assert result.token_ids == [None, 4, None, None]
    assert result.embeddings == {2: (8.0, 1.0), 3: (9.0, 0.0)}
    assert model.inputs[0].logit_rows.tolist() == [5]
    assert model.inputs[0].state_rows.tolist() == [0, 1, 2, 7, 8]
    last = (Chunk(0, (4,), 3, (0,), Wants.TOKEN), Chunk(1, (8,), 3, (1,), Wants.EMBEDDING))
    result = worker.execute(Batch(last, retired=(2, 3)))
    assert (result.token_ids, result.embeddings) == ([5, None], {1: (23 / 4, 1.5)})


def test_the_rows_before_the_last_one_are_not_asked_for(worker: TorchWorker, model: RecordingModel) -> None:
    start = begin(0, 1, 2, 3, 4, pooling=Pooling.LAST)
    worker.execute(Batch((Chunk(0, (1, 2), 0, (0,), Wants.NOTHING),), (start,)))
    result = worker.execute(Batch((Chunk(0, (3, 4), 2, (0,), Wants.EMBEDDING),)))
    assert result.embeddings == {0: (4.0, 3.0)}
    assert [inputs.state_rows.tolist() for inputs in model.inputs] == [[], [1]]
    assert all(not inputs.logit_rows.numel() for inputs in model.inputs)


def test_the_last_row_may_follow_a_prefix_that_was_never_computed_here(worker: TorchWorker) -> None:
    start = begin(0, *range(1, 7), pooling=Pooling.LAST)
    result = worker.execute(Batch((Chunk(0, (5, 6), 4, (0, 1), Wants.EMBEDDING),), (start,)))
    assert result.embeddings == {0: (6.0, 5.0)}
    for pooling in (Pooling.MEAN, Pooling.CLS):
        start = begin(1, *range(1, 7), pooling=pooling)
        with pytest.raises(WorkerError, match=r"sequence 1 has 6 tokens; [02] were computed"):
            worker.execute(Batch((Chunk(1, (5, 6), 4, (0, 1), Wants.EMBEDDING),), (start,)))


@pytest.mark.parametrize("pooling", Pooling)
def test_a_preempted_embedding_begins_anew(worker: TorchWorker, pooling: Pooling) -> None:
    start = begin(0, 1, 2, 3, 4, pooling=pooling)
    worker.execute(Batch((Chunk(0, (1, 2, 3), 0, (0,), Wants.NOTHING),), (start,)))
    result = worker.execute(Batch((Chunk(0, (1, 2, 3, 4), 0, (1,), Wants.EMBEDDING),), (start,), (0,)))
    expected = {Pooling.MEAN: (2.5, 1.5), Pooling.CLS: (1.0, 0.0), Pooling.LAST: (4.0, 3.0)}[pooling]
    assert result.embeddings == {0: expected}


def test_hidden_states_that_are_no_numbers_fail_their_sequence_only(
    worker: TorchWorker, model: RecordingModel
) -> None:
    model.spoiled = {2}
    chunks = (Chunk(0, (1, 2), 0, (0,), Wants.EMBEDDING), Chunk(1, (3, 4, 5), 0, (1,), Wants.EMBEDDING))
    starts = (begin(0, 1, 2, pooling=Pooling.MEAN), begin(1, 3, 4, 5, pooling=Pooling.MEAN))
    result = worker.execute(Batch(chunks, starts))
    assert result.embeddings == {0: (1.5, 0.5)}
    assert result.errors == {1: "The model's hidden states are not finite numbers."}


def test_a_projection_is_applied_to_what_was_pooled(model: RecordingModel) -> None:
    spec = WorkerSpec(
        vocab_size=VOCAB, max_length=64, block_size=4, num_blocks=9, max_num_seqs=2, max_num_batched_tokens=9
    )
    worker = TorchWorker(spec, model, Sampler(VOCAB, 2, "cpu"), lambda vector: vector[:1] * 10)
    chunk = Chunk(0, (3, 5), 0, (0,), Wants.EMBEDDING)
    result = worker.execute(Batch((chunk,), (begin(0, 3, 5, pooling=Pooling.MEAN),)))
    assert result.embeddings == {0: (40.0,)}
