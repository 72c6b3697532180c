"""LlamaCppWorker: what it asks of llama.cpp, what it makes of the answers, and what it does on failures."""

import logging
import subprocess
import sys
import textwrap
from itertools import pairwise

import pytest

from millstream.backends.answers import Sampler
from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.gguf.model_file import read_model
from millstream.backends.llamacpp.readers import Reader
from millstream.backends.llamacpp.worker import LlamaCppWorker
from millstream.backends.machine.threads import ThreadChooser
from millstream.backends.worker import ModelInfo, WorkerConfig, WorkerSpec
from millstream.errors import InsufficientMemory, ModelFormatError, WorkerError
from millstream.scheduler.batch import Batch, Chunk, SequenceStart, Wants
from millstream.scheduler.sampling_params import SamplingParams

from .scripted_context import VOCAB, ScriptedContext

GREEDY = SamplingParams(temperature=0)


def make(context, seats=8, threads=None):
    spec = WorkerSpec(
        vocab_size=VOCAB,
        max_length=64,
        block_size=4,
        num_blocks=100,
        max_num_seqs=seats,
        max_num_batched_tokens=24,
        shares_within_step=False,
    )
    return LlamaCppWorker(spec, None, context, Reader(Sampler(VOCAB, seats, "cpu")), threads=threads)


@pytest.fixture
def context():
    return ScriptedContext()


@pytest.fixture
def worker(context):
    return make(context)


def begin(seq, *tokens, params=GREEDY):
    return SequenceStart(seq, tokens, len(tokens), params, seed=0)


def chunk(seq, tokens, start=0, wants=Wants.TOKEN, blocks=None):
    """A chunk of sequence `seq`, whose blocks are numbered from ten times its id on."""
    end = start + len(tokens)
    return Chunk(seq, tuple(tokens), start, tuple(blocks or range(10 * seq, 10 * seq - -end // 4)), wants)


def starting(*chunks):
    return Batch(chunks, tuple(begin(each.seq, *each.tokens) for each in chunks))


def test_the_context_takes_the_threads_that_are_chosen_for_each_step(context):
    worker = make(context, threads=ThreadChooser(2, tunes=True))
    told = [worker.execute(starting(chunk(0, [1]))).threads]
    told += [worker.execute(Batch((chunk(0, [1], start=i),))).threads for i in range(1, 8)]
    assert told == context.threads
    assert set(told) == {1, 2}


def test_single_tokens_go_first_by_lane_and_longer_ones_last_by_lane(worker, context):
    worker.execute(starting(*(chunk(seq, [seq]) for seq in range(4))))
    chunks = (
        chunk(3, [7], 1),
        chunk(5, [1, 2, 3], wants=Wants.NOTHING),
        chunk(0, [8], 1),
        chunk(6, [4, 5]),
        chunk(1, [9], 1),
        chunk(2, [6], 1),
    )
    result = worker.execute(Batch(chunks, (begin(5, 1, 2, 3), begin(6, 4, 5))))
    assert result.token_ids == [8, None, 9, 6, 10, 7]
    tokens, positions, lanes, wanted = context.calls[-1]
    assert tokens == [8, 9, 6, 7, 4, 5, 1, 2, 3]
    assert positions == [1, 1, 1, 1, 0, 1, 0, 1, 2]
    assert lanes == [0, 1, 2, 3, 5, 5, 4, 4, 4]
    assert wanted == [0, 1, 2, 3, 5]


def test_small_gaps_between_lanes_are_filled(worker, context):
    worker.execute(starting(*(chunk(seq, [seq, seq]) for seq in range(8))))
    worker.execute(Batch((), (), (1, 2, 3, 4, 5)))
    before = [list(lane) for lane in context.lanes]
    result = worker.execute(Batch((chunk(7, [5], 2), chunk(0, [6], 2), chunk(6, [3], 2))))
    assert result.token_ids == [6, 7, 4]
    assert context.calls[-1][2] == [0, 6, 7], "the gap of five is too long"
    worker.execute(starting(chunk(2, [9], blocks=[90])))
    chunks = (chunk(7, [6], 3), chunk(0, [7], 3), chunk(6, [4], 3), chunk(2, [10], 1, blocks=[90]))
    assert worker.execute(Batch(chunks)).token_ids == [7, 8, 5, 11]
    _, positions, lanes, wanted = context.calls[-1]
    assert len(lanes) == lanes[-1] - lanes[0] + 1 == 8
    assert [row for row, lane in enumerate(lanes) if lane in (0, worker._map.lane(2), 6, 7)] == wanted
    idle = [lane for lane in range(1, 6) if lane != worker._map.lane(2)]
    assert [positions[lane] for lane in idle] == [2] * 4
    assert [context.lanes[lane] for lane in idle] == [before[lane] for lane in idle], "fillers leave no trace"


@pytest.mark.parametrize("changes", [{"streams": False}, {"can_cut": False}])
def test_no_gaps_are_filled_where_that_is_of_no_use(changes):
    context = ScriptedContext(**changes)
    worker = make(context)
    worker.execute(starting(*(chunk(seq, [seq]) for seq in range(3))))
    worker.execute(Batch((chunk(0, [5], 1), chunk(2, [5], 1)), (), (1,)))
    assert context.calls[-1][2] == [0, 2]


def test_a_step_that_is_too_long_for_one_call_is_cut(worker, context):
    chunks = [chunk(seq, range(18)) for seq in range(3)]
    assert worker.execute(starting(*chunks)).token_ids == [18, 18, 18]
    assert [len(call[0]) for call in context.calls] == [24, 24, 6]
    assert [len(call[3]) for call in context.calls] == [1, 1, 1]


def test_prompts_are_scored_by_few_rows_at_a_time(worker, context):
    params = SamplingParams(temperature=0, prompt_logprobs=1)
    prompt = [1, 2, 3, 9, 10, 11, 12, 13, 14, 15, 16, 17, 3, 4, 5, 6, 7, 8, 20, 21]
    result = worker.execute(
        Batch(
            (chunk(0, prompt), chunk(1, [4]), chunk(2, range(5))),
            (begin(0, *prompt, params=params), begin(1, 4), begin(2, *range(5), params=params)),
        )
    )
    assert result.token_ids == [22, 5, 5]
    assert set(result.prompt_logprobs) == {0, 2}
    for seq, tokens in [(0, prompt), (2, range(5))]:
        entries = result.prompt_logprobs[seq]
        assert len(entries) == len(tokens)
        assert entries[0] is None
        sure = [entry.logprob > -0.1 for entry in entries[1:]]
        assert sure == [b == a + 1 for a, b in pairwise(tokens)]


def test_content_that_was_lost_is_computed_again():
    context = ScriptedContext(lanes=2)
    worker = make(context, seats=2)
    prompt = tuple(range(9))
    worker.execute(starting(chunk(0, prompt[:8], blocks=(1, 2))))
    worker.execute(starting(chunk(1, [30], blocks=(3,))))
    lost = worker.execute(Batch((chunk(0, [31], blocks=(4,)),), (begin(0, 31),), (0, 1)))
    assert lost.lost_blocks == (1, 2)
    result = worker.execute(Batch((chunk(1, [8], 8, blocks=(1, 2, 5)),), (begin(1, *prompt),)))
    assert result.token_ids == [9]
    assert context.calls[-1][0] == list(prompt)
    assert context.calls[-1][3] == [8]
    assert worker.map_stats.missing_tokens == 8


def test_lanes_that_cannot_be_cut_are_computed_again_from_the_start():
    context = ScriptedContext(can_cut=False)
    worker = make(context)
    worker.execute(starting(chunk(0, range(8))))
    worker.execute(Batch((chunk(0, [8], 8),)))
    assert worker.execute(Batch((chunk(0, [20], 8),))).token_ids == [21]
    assert context.calls[-1][0] == [*range(8), 20]
    assert worker.execute(
        Batch((chunk(1, [8], 8, blocks=(0, 1, 12)),), (begin(1, *range(9)),))
    ).token_ids == [9]
    assert context.calls[-1][0] == list(range(9))


def test_without_room_ended_sequences_are_forgotten_first(worker, context):
    worker.execute(starting(chunk(0, range(8)), chunk(1, range(4))))
    context.code = lambda call: 1 if any(map(len, context.lanes[2:])) or context.lanes[0] else 0
    result = worker.execute(Batch((chunk(1, [5], 4),), (), (0,)))
    assert result.token_ids == [6]
    assert result.lost_blocks == (0, 1)
    assert result.unplaced == frozenset()


def test_without_room_for_all_of_a_step_some_sequences_stay_unplaced(worker, context):
    context.code = lambda call: int(len(call[0]) > 4)
    chunks = (chunk(0, [1, 2]), chunk(1, range(5)), chunk(2, [3]), chunk(3, range(4)))
    result = worker.execute(starting(*chunks))
    assert result.token_ids == [3, None, 4, 4]
    assert result.unplaced == {1}
    context.code = lambda call: 0
    again = worker.execute(Batch((chunk(1, range(5)), chunk(0, [3], 2)), (begin(1, *range(5)),), (1,)))
    assert again.token_ids == [5, 4]
    worker._map.check_integrity()


@pytest.mark.parametrize("code", [2, -1, -2, -3])
def test_a_failure_empties_the_memory(worker, context, code):
    worker.execute(starting(chunk(0, range(4)), chunk(1, range(3))))
    context.code = lambda call: code
    with pytest.raises(WorkerError, match=f"llama_decode returned {code} for 2 tokens"):
        worker.execute(Batch((chunk(0, [4], 4), chunk(1, [3], 3))))
    assert not any(context.lanes)
    context.code = lambda call: 0
    # Sequences may begin again, and one that goes on is computed from its start.
    result = worker.execute(Batch((chunk(0, range(4)), chunk(1, [3], 3)), (begin(0, *range(4)),), (0,)))
    assert result.token_ids == [4, 4]
    assert result.lost_blocks == ()


def test_what_else_fails_is_a_worker_error_too(worker, context):
    def fail(call):
        raise MemoryError("no more")

    context.code = fail
    with pytest.raises(WorkerError, match="MemoryError while executing a batch: no more"):
        worker.execute(starting(chunk(0, [1])))
    with pytest.raises(WorkerError, match="sequence 0 has 70 tokens; at most 64 fit"):
        worker.execute(starting(chunk(0, [1] * 70)))
    context.code = lambda call: 0
    assert worker.execute(starting(chunk(0, [1]))).token_ids == [2]


def test_closing_frees_once(worker, context):
    worker.close()
    worker.close()
    assert context.closed == 1
    with pytest.raises(WorkerError, match="closed"):
        worker.execute(Batch(()))


def config(**changes):
    values = {
        "device": "cpu",
        "dtype": "bf16",
        "max_length": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "block_size": 16,
        "num_blocks": 128,
        "threads": 1,
    }
    return WorkerConfig(**{**values, **changes})


def test_without_room_the_cache_grows_before_anything_is_forgotten(worker, context):
    worker.execute(starting(chunk(0, range(8)), chunk(1, range(4))))
    sizes = [1, 2]
    context.code = lambda call: int(len(sizes) > 0)
    context.grow = lambda: sizes.pop(0) > 0 if sizes else False
    result = worker.execute(Batch((chunk(1, [5], 4),), (), (0,)))
    assert (result.token_ids, sizes) == ([6], [])
    assert result.lost_blocks == ()


# With llama.cpp itself


@pytest.fixture
def load():
    pytest.importorskip("llama_cpp")
    from millstream.backends.llamacpp.worker import load_worker

    def load(
        path=BUNDLED_MODELS["pyhelp-bf16"], vocab_size=4096, progress=lambda what, share: None, **changes
    ):
        info = ModelInfo(
            name=path.stem,
            path=path,
            backend="llamacpp",
            architecture="llama",
            num_parameters=1,
            vocab_size=vocab_size,
            max_length=2048,
            eos_token_ids=(2,),
            generation_defaults={},
        )
        return load_worker(read_model(BUNDLED_MODELS["pyhelp-bf16"]), info, config(**changes), progress)

    return load


def test_loading_tells_its_progress_and_prints_nothing(load, capfd, caplog):
    caplog.set_level(logging.DEBUG, "millstream.llamacpp")
    told = []
    worker = load(progress=lambda what, share: told.append((what, share)))
    worker.execute(starting(chunk(0, range(5))))
    worker.close()
    assert told[-1] == ("weights", 1.0)
    assert capfd.readouterr() == ("", "")
    lines = [record for record in caplog.records if record.name == "millstream.llamacpp"]
    assert any("n_ctx_seq" in record.message and record.levelno == logging.INFO for record in lines)
    assert all("\n" not in record.message for record in lines)


def test_the_spec_says_what_the_worker_can_do(load):
    worker = load(max_num_seqs=300, num_blocks=200)
    assert worker.spec.max_num_seqs == 256
    assert worker.spec.shares_prefixes
    assert not worker.spec.shares_within_step
    worker.close()


def test_a_file_that_is_no_model_is_named(load, tmp_path, capfd):
    path = tmp_path / "text.gguf"
    path.write_text("Once upon a time")
    with pytest.raises(ModelFormatError, match=r"text\.gguf cannot be loaded by llama\.cpp: .*magic"):
        load(path)
    assert capfd.readouterr() == ("", "")


def test_a_vocabulary_of_another_size_is_refused(load):
    with pytest.raises(ModelFormatError, match="has 4096 tokens; 4000 were found"):
        load(vocab_size=4000)


def test_more_cells_than_llamacpp_can_count_are_refused(load):
    with pytest.raises(InsufficientMemory, match="smaller max_length, max_num_seqs or num_blocks"):
        load(num_blocks=1 << 28, max_length=1 << 29)


def test_a_cache_that_does_not_fit_memory_is_refused():
    pytest.importorskip("llama_cpp")
    program = f"""
        import resource
        from pathlib import Path
        from millstream.backends.gguf.model_file import read_model
        from millstream.backends.llamacpp.worker import load_worker
        from millstream.backends.worker import ModelInfo, WorkerConfig
        from millstream.errors import InsufficientMemory

        resource.setrlimit(resource.RLIMIT_AS, (1 << 35, 1 << 35))
        info = ModelInfo(name="m", path=Path({str(BUNDLED_MODELS["pyhelp-bf16"])!r}), backend="llamacpp",
            architecture="llama", num_parameters=1, vocab_size=4096, max_length=2048, eos_token_ids=(),
            generation_defaults={{}})
        config = WorkerConfig(device="cpu", dtype="bf16", max_length=1 << 20, max_num_seqs=32, block_size=16,
            max_num_batched_tokens=64, num_blocks=1 << 21, threads=1)
        try:
            load_worker(read_model(info.path), info, config, lambda what, share: None)
        except InsufficientMemory as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith(
        "llama.cpp could not set up 32 sequences with 33554432 tokens in all for m: "
    )
    assert done.stderr == ""
