"""Adapters of GGUF models in the engine: a request gets the tokens of llama.cpp alone under its adapter."""

import pytest

from millstream.backends.bundled import BUNDLED_MODELS, PYHELP
from millstream.engine import AsyncEngine, ModelConfig, RequestOptions, SamplingParams
from millstream.errors import AdapterNotFound, ModelFormatError

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from millstream.backends.export.adapter import export_adapter
from millstream.backends.torch.files.checkpoint import Checkpoint

from ..backends.llamacpp.plain_llama import plain_llama
from ..backends.llamacpp.small_adapters import LINEAR, save_peft

BASE = BUNDLED_MODELS["pyhelp-bf16"]
PROMPTS = [[1 + (7 * i + 31 * k) % 900 for i in range(40 + 9 * k)] for k in range(4)]
COUNT = 8


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    headers = Checkpoint(PYHELP).headers
    shapes = {name: header.shape for name, header in headers.items() if LINEAR.fullmatch(name)}
    found = {}
    for seed, name in enumerate("ab"):
        save_peft(folder / name, shapes, seed=seed)
        found[name] = export_adapter(PYHELP, folder / name, folder / f"{name}.gguf").path
    return found


@pytest.fixture(scope="module")
def expected(adapters):
    tokens = {}
    for name, path in {None: None, **adapters}.items():
        with plain_llama(BASE, as_served=True) as model:
            if path is not None:
                model.adapt(path)
            for k, prompt in enumerate(PROMPTS):
                tokens[name, k] = model.greedy(prompt, COUNT)
    return tokens


@pytest.fixture
async def engine():
    async with AsyncEngine() as engine:
        config = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_length": 128, "threads": 1}
        await engine.install_model(ModelConfig(model=str(BASE), name="m", **config))
        await engine.start_model("m")
        yield engine


async def answers(engine, wanted):
    params = SamplingParams(temperature=0, max_new_tokens=COUNT, ignore_eos=True)
    streams = [
        (await engine.start_request("m", PROMPTS[k], params, RequestOptions(detokenize=False, adapter=name)))[
            1
        ]
        for name, k in wanted
    ]
    for stream in streams:
        await stream.await_finished()
    return [stream.get().token_ids for stream in streams], sum(stream.num_cached_tokens for stream in streams)


async def test_requests_under_all_adapters_at_once(engine, adapters, expected):
    for name, path in adapters.items():
        await engine.load_adapter("m", name, path)
    wanted = [(name, k) for k in range(4) for name in ("a", None, "b")]
    for order in (wanted, wanted[::-1]):
        found, cached = await answers(engine, order)
        assert found == [expected[each] for each in order]
    assert cached > 0, "a prefix is shared under the adapter that it was computed with"
    assert expected[None, 0] != expected["a", 0] != expected["b", 0]


async def test_another_adapter_under_the_same_name_reads_nothing_of_the_first(engine, adapters, expected):
    for name in ("a", "b", "a"):
        await engine.load_adapter("m", "x", adapters[name])
        found, cached = await answers(engine, [("x", 0)])
        assert (found, cached) == ([expected[name, 0]], 0)
        await engine.unload_adapter("m", "x")


async def test_files_that_are_no_adapters_leave_the_model_running(engine, adapters, expected, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(adapters["a"].read_bytes()[:-64])
    for path, error in [
        (damaged, ModelFormatError),
        (BASE, ModelFormatError),
        (tmp_path, ModelFormatError),
        (tmp_path / "none.gguf", AdapterNotFound),
    ]:
        with pytest.raises(error, match=str(path)):
            await engine.load_adapter("m", "x", path)
    assert engine.adapters("m") == []
    assert (await answers(engine, [(None, 1)]))[0] == [expected[None, 1]]
