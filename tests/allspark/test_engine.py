"""DashInfer's engine verbs: life cycle, requests, refusals and statistics."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millstream.allspark import (
    AsEngineStat,
    ASGenerationConfigBuilder,
    AsModelConfig,
    AsModelRuntimeConfigBuilder,
    AsStatus,
    Engine,
    GenerateRequestStatus,
    RequestStatInfo,
)
from millstream.allspark.llm import LLM
from millstream.backends.fake import CharacterTokenizer, FakeBackend
from millstream.errors import (
    InvalidArgument,
    LimitExceeded,
    ModelNotFound,
    ModelStateError,
    NotSupported,
    UnknownRequest,
)

from ..waiting import HANG_SECONDS

Status = GenerateRequestStatus
SUCCESS = AsStatus.ALLSPARK_SUCCESS
TEN = {"max_new_tokens": 10, "do_sample": False}


def finish(engine: Engine, name: str = "m", config: Any = TEN) -> list[int]:
    status, handle, queue = engine.start_request_ids(name, None, [1, 2, 3], config)
    assert status is SUCCESS
    assert engine.sync_request(name, handle) is SUCCESS
    ids: list[int] = queue.Get().ids_from_generate
    return ids


# Models


def test_life_of_a_model(config: AsModelConfig) -> None:
    with Engine() as engine:
        assert engine.install_model(config) is SUCCESS
        assert engine.start_model("m") is SUCCESS
        first = finish(engine)
        assert engine.stop_model("m") is SUCCESS
        assert engine.start_model("m") is SUCCESS
        assert finish(engine) == first
        assert engine.stop_model("m") is SUCCESS
        assert engine.release_model("m") is SUCCESS
        assert engine.build_model_from_config_struct(config) is SUCCESS
        assert engine.last_error is None


def test_install_takes_a_builder_too() -> None:
    builder = AsModelRuntimeConfigBuilder().model_name("b").compute_unit("CPU").max_length(64)
    with Engine() as engine:
        assert engine.install_model(builder.backend(FakeBackend())) is SUCCESS
        assert engine.start_model("b") is SUCCESS


def test_several_models_run_side_by_side(engine: Engine, config: AsModelConfig) -> None:
    config.model_name = "other"
    assert (engine.install_model(config), engine.start_model("other")) == (SUCCESS, SUCCESS)
    assert len(finish(engine, "other")) == len(finish(engine)) == 10
    assert engine.stop_model("other") is SUCCESS
    assert len(finish(engine)) == 10


def test_wrong_order_of_life_is_an_invalid_call(config: AsModelConfig) -> None:
    invalid = AsStatus.ALLSPARK_INVALID_CALL_ERROR
    with Engine() as engine:
        engine.install_model(config)
        assert engine.stop_model("m") is invalid
        assert engine.start_request_ids("m", None, [1], TEN) == (invalid, None, None)
        assert engine.start_model("m") is SUCCESS
        assert engine.start_model("m") is invalid
        assert engine.release_model("m") is invalid
        assert isinstance(engine.last_error, ModelStateError)


def test_unknown_models(engine: Engine) -> None:
    wrong = AsStatus.ALLSPARK_PARAM_ERROR
    verbs = (engine.start_model, engine.stop_model, engine.release_model, engine.unload_device_mem)
    assert [verb("nobody") for verb in verbs] == [wrong] * 4
    assert engine.start_request_ids("nobody", None, [1], TEN) == (wrong, None, None)
    assert engine.start_request_text("nobody", None, "a", TEN) == (wrong, None, None)
    assert engine.sync_request("nobody", None) is wrong
    assert isinstance(engine.last_error, ModelNotFound)
    for look in (engine.get_as_engine_stat, engine.get_model_info, engine.get_op_profiling_info):
        with pytest.raises(ModelNotFound, match="nobody"):
            look("nobody")


@pytest.mark.parametrize(
    ("fields", "kind", "match"),
    [
        ({"model_name": "m"}, ModelStateError, "installed already"),
        ({"compute_unit": "CPU:0,1"}, NotSupported, "NUMA"),
        ({"engine_max_length": 300}, InvalidArgument, "300"),
        ({"engine_max_batch": 0}, InvalidArgument, "engine_max_batch"),
    ],
)
def test_install_raises_what_is_wrong(
    engine: Engine, config: AsModelConfig, fields: dict[str, Any], kind: type[Exception], match: str
) -> None:
    config.model_name = "second"
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(kind, match=match):
        engine.install_model(config)


def test_a_stopping_and_a_stopped_model_deny_requests(engine: Engine, gate: Any) -> None:
    denied = (AsStatus.ALLSPARK_REQUEST_DENIED, None, None)
    gate.close()
    queue = engine.start_request_ids("m", None, [1, 2], TEN)[2]
    stopping = threading.Thread(target=engine.stop_model, args=("m",))
    stopping.start()
    answer: tuple[Any, Any, Any] = (SUCCESS, None, None)
    deadline = time.monotonic() + HANG_SECONDS
    while answer[0] is SUCCESS and time.monotonic() < deadline:
        answer = engine.start_request_ids("m", None, [3], TEN)
        time.sleep(0.001)
    assert answer == denied
    gate.open()
    stopping.join()
    assert len(queue.Get().ids_from_generate) == 10
    assert queue.GenerateStatus() is Status.GenerateFinished
    assert engine.start_request_ids("m", None, [3], TEN) == denied


def test_stop_with_a_timeout_interrupts_what_runs(engine: Engine, gate: Any) -> None:
    gate.close()
    queue = engine.start_request_ids("m", None, [1, 2], {"max_length": 200})[2]
    gate.step()
    assert len(queue.Get().ids_from_generate) == 1
    stopping = threading.Thread(target=engine.stop_model, args=("m",), kwargs={"timeout": 0})
    stopping.start()
    while stopping.is_alive():
        gate.step()
        stopping.join(0.02)
    queue.GetNoWait()
    assert queue.GenerateStatus() is Status.GenerateInterrupted


def test_device_memory_is_given_back_and_taken_again(engine: Engine) -> None:
    before = finish(engine)
    assert engine.unload_device_mem("m") is SUCCESS
    assert engine.start_request_ids("m", None, [1], TEN)[0] is AsStatus.ALLSPARK_REQUEST_DENIED
    assert engine.load_device_mem("m") is SUCCESS
    assert finish(engine) == before


# Requests


def test_a_request_goes_through_dashinfers_states(engine: Engine, gate: Any) -> None:
    gate.close()
    config = ASGenerationConfigBuilder().max_new_tokens(4)
    _, handle, queue = engine.start_request_ids("m", None, [1, 2, 3], config)
    seen = [queue.GenerateStatus()]
    for _ in range(4):
        gate.step()
        assert len(queue.Get().ids_from_generate) == 1
        seen.append(queue.GenerateStatus())
    assert engine.sync_request("m", handle) is SUCCESS
    seen.append(queue.GenerateStatus())
    assert seen[:4] == [Status.Init, Status.ContextFinished, Status.Generating, Status.Generating]
    assert seen[-1] is Status.GenerateFinished
    assert queue.Get().ids_from_generate == []


def test_text_and_ids_and_inputs_are_the_same_request(engine: Engine) -> None:
    text = engine.start_request_text("m", None, "who are you?", TEN)[2]
    ids = engine.tokenizer("m").encode("who are you?")
    by_ids = engine.start_request_ids("m", None, ids, TEN)[2]
    by_inputs = engine.start_request("m", {"input_ids": [ids]}, TEN)[2]
    engine.sync_request("m", None)
    answers = [queue.Get() for queue in (text, by_ids, by_inputs)]
    assert answers[0].ids_from_generate == answers[1].ids_from_generate == answers[2].ids_from_generate
    assert answers[0].text == engine.tokenizer("m").decode(answers[0].ids_from_generate)


def test_a_list_of_texts_has_a_list_of_answers(engine: Engine) -> None:
    answers = engine.start_request_text("m", None, ["a", "", "ccc"], TEN)
    assert [status for status, _, _ in answers] == [SUCCESS, AsStatus.ALLSPARK_EXCEED_LIMIT_ERROR, SUCCESS]
    assert engine.sync_request("m", None) is SUCCESS
    assert [len(queue.Get().ids_from_generate) for _, _, queue in answers if queue] == [10, 10]


def test_a_tokenizer_that_the_loader_has_initialised_is_used(engine: Engine) -> None:
    class Shouting(CharacterTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return super().encode(text.upper())

    class Loader(LLM):
        def init_tokenizer(self, padding_side: str = "left") -> "Loader":
            return self

        def get_tokenizer(self) -> Any:
            return Shouting(500)

    shouted = engine.start_request_text("m", Loader(), "who?", TEN)[2]
    loud = engine.start_request_text("m", None, "WHO?", TEN)[2]
    assert shouted.stream.wait_finished(30)
    assert loud.stream.wait_finished(30)
    assert shouted.Get().ids_from_generate == loud.Get().ids_from_generate


def test_any_object_with_a_tokenizer_is_a_loader(engine: Engine) -> None:
    class Loader:
        def init_tokenizer(self) -> "Loader":
            return self

        def get_tokenizer(self) -> Any:
            return CharacterTokenizer(500)

    assert engine.start_request_text("m", Loader(), "who?", TEN)[0] is SUCCESS
    refused = (AsStatus.ALLSPARK_PARAM_ERROR, None, None)
    assert engine.start_request_text("m", "loader", "who?", TEN) == refused


def test_several_samples_have_a_queue_each(engine: Engine) -> None:
    config = {"num_return_sequences": 3, "max_new_tokens": 5, "seed": 1}
    _, handle, queue = engine.start_request_ids("m", None, [1, 2], config)
    assert engine.sync_request("m", handle) is SUCCESS
    assert queue is handle.queues[0]
    samples = [tuple(each.Get().ids_from_generate) for each in handle.queues]
    assert len(set(samples)) == 3


def test_log_probabilities_reach_the_elements(engine: Engine) -> None:
    config = ASGenerationConfigBuilder().max_new_tokens(2).log_probs(True, 1)
    _, handle, queue = engine.start_request_ids("m", None, [1, 2], config)
    engine.sync_request("m", handle)
    elements = queue.Get()
    assert elements.token_logprobs_list == [-0.5, -0.5]
    assert elements.log_probs_list == [[(token, -0.5)] for token in elements.ids_from_generate]


@pytest.mark.parametrize(
    ("prompt", "generation", "status"),
    [
        ([], TEN, AsStatus.ALLSPARK_EXCEED_LIMIT_ERROR),
        ([1] * 199, {"max_new_tokens": 1}, AsStatus.ALLSPARK_EXCEED_LIMIT_ERROR),
        ([1, 2], {"max_length": 201}, AsStatus.ALLSPARK_EXCEED_LIMIT_ERROR),
        ([1] * 30, {"max_length": 30}, AsStatus.ALLSPARK_EXCEED_LIMIT_ERROR),
        ([1] * 30, {}, AsStatus.ALLSPARK_EXCEED_LIMIT_ERROR),
        ([500], TEN, AsStatus.ALLSPARK_PARAM_ERROR),
        ([-1], TEN, AsStatus.ALLSPARK_PARAM_ERROR),
        ([1.5], TEN, AsStatus.ALLSPARK_PARAM_ERROR),
        ([1], {"eos_token_id": 500}, AsStatus.ALLSPARK_PARAM_ERROR),
        ([1], {"top_k": -1}, AsStatus.ALLSPARK_PARAM_ERROR),
        ([1], {"lora_name": "a"}, AsStatus.ALLSPARK_LORA_NOT_FOUND),
        ([1], {"no_such_key": 1}, AsStatus.ALLSPARK_PARAM_ERROR),
        ([1], 5, AsStatus.ALLSPARK_PARAM_ERROR),
    ],
)
def test_refused_requests(engine: Engine, prompt: list[int], generation: Any, status: AsStatus) -> None:
    assert engine.start_request_ids("m", None, prompt, generation) == (status, None, None)
    assert engine.last_error is not None
    assert engine.get_as_engine_stat("m").pendding_request == 0


def test_the_longest_prompt_that_dashinfer_takes_is_taken(engine: Engine) -> None:
    _, handle, queue = engine.start_request_ids("m", None, [1] * 198, {"max_length": 200})
    assert engine.sync_request("m", handle) is SUCCESS
    assert len(queue.Get().ids_from_generate) == 2


def test_texts_that_are_none(engine: Engine) -> None:
    assert engine.start_request_text("m", None, ["a", 5], TEN)[1] == (
        AsStatus.ALLSPARK_PARAM_ERROR,
        None,
        None,
    )


def test_an_error_is_logged_and_kept_for_its_own_thread(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        engine.start_request_ids("m", None, [], TEN)
    assert "ALLSPARK_EXCEED_LIMIT_ERROR: the prompt has 0 tokens" in caplog.text
    assert isinstance(engine.last_error, LimitExceeded)
    seen: list[Any] = []
    other = threading.Thread(target=lambda: seen.append(engine.last_error))
    other.start()
    other.join()
    assert seen == [None]
    finish(engine)
    assert engine.last_error is None


def test_stopping_and_releasing(engine: Engine, gate: Any) -> None:
    gate.close()
    _, handle, queue = engine.start_request_ids("m", None, [1, 2], TEN)
    gate.step()
    first = queue.Get().ids_from_generate
    assert engine.stop_request("m", handle) is SUCCESS
    gate.open()
    assert engine.sync_request("m", handle) is SUCCESS
    rest = queue.Get().ids_from_generate
    assert 1 <= len(first + rest) < 10
    assert queue.GenerateStatus() is Status.GenerateInterrupted
    assert engine.release_request("m", handle) is SUCCESS
    illegal = AsStatus.ALLSPARK_ILLEGAL_REQUEST_ID
    for verb in (engine.release_request, engine.stop_request, engine.sync_request):
        assert verb("m", handle) is illegal
    assert engine.stop_request("m", None) is illegal
    assert engine.release_request("m", None) is illegal
    assert isinstance(engine.last_error, UnknownRequest)


def test_sync_without_a_handle_waits_for_all(engine: Engine) -> None:
    queues = [engine.start_request_ids("m", None, [number], TEN)[2] for number in range(1, 9)]
    assert engine.sync_request("m", None) is SUCCESS
    assert all(queue.GenerateStatus() is Status.GenerateFinished for queue in queues)
    assert engine.sync_request("m", None) is SUCCESS


def test_deprecated_readers(engine: Engine) -> None:
    _, handle, queue = engine.start_request_ids("m", None, [1, 2], TEN)
    ids = engine.get_wait("m", queue)
    assert ids
    engine.sync_request("m", handle)
    ids += engine.get_no_wait("m", queue)
    assert len(ids) == 10
    assert engine.get_no_wait("m", queue) == engine.get_wait("m", queue) == []
    assert engine.get_request_status("m", queue) is Status.GenerateFinished


def test_a_uuid_is_a_name_for_the_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _, handle, _ = engine.start_request_ids("m", None, [1], {**TEN, "uuid": "order 66"})
    assert f"request {handle.request_id} of m is order 66" in caplog.text


def test_json_arguments(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    config: dict[str, Any] = {"top_k": 1, "vocab": {"a": 0}, "vocab_type": 3}
    engine.print_gen_cfg(config)
    assert capsys.readouterr().out == "{'top_k': 1, 'vocab_type': 3}\n"
    engine.process_json_mode_arguments(config)
    assert config == {"top_k": 1}
    with pytest.raises(NotSupported):
        engine.process_json_mode_arguments({"response_format": {"type": "json_object"}})


def test_adapters_are_not_found(engine: Engine) -> None:
    assert engine.load_lora("m", "a") is AsStatus.ALLSPARK_LORA_NOT_FOUND
    assert engine.unload_lora("m", "a") is AsStatus.ALLSPARK_LORA_NOT_FOUND
    assert "no adapter named 'a'" in str(engine.last_error)
    assert engine.load_lora("nobody", "a") is AsStatus.ALLSPARK_PARAM_ERROR


def test_adapters_are_loaded_and_used(config: AsModelConfig, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in "ab"]
    for name in names:
        Path(name).touch()
    with Engine() as engine:
        engine.install_model(msgspec.structs.replace(config, lora_max_num=1, backend=FakeBackend()))
        assert engine.load_lora("m", names[0]) is AsStatus.ALLSPARK_INVALID_CALL_ERROR
        engine.start_model("m")
        assert engine.load_lora("m", names[0]) is SUCCESS
        assert engine.load_lora("m", names[0]) is AsStatus.ALLSPARK_LORA_ALREADY_LOADED
        assert engine.load_lora("m", names[1]) is AsStatus.ALLSPARK_LORA_NUM_EXCEED_LIMIT_ERROR
        texts = []
        for name in ("", names[0]):
            generation = {"top_k": 1, "max_length": 20, "lora_name": name}
            status, handle, queue = engine.start_request_ids("m", None, [1, 2, 3], generation)
            assert status is SUCCESS
            engine.sync_request("m", handle)
            texts.append(queue.Get().text)
        assert texts[0] != texts[1]
        assert engine.unload_lora("m", names[0]) is SUCCESS
        engine.stop_model("m")
        engine.release_model("m")
        engine.install_model(msgspec.structs.replace(config, lora_max_rank=4, backend=FakeBackend()))
        engine.start_model("m")
        assert engine.load_lora("m", names[0]) is AsStatus.ALLSPARK_LORA_RANK_EXCEED_LIMIT_ERROR


def test_conversions_are_refused(engine: Engine) -> None:
    with pytest.raises(NotSupported, match="serialize_to_path"):
        engine.serialize_model_from_torch("m", "Qwen", {}, {})
    with pytest.raises(NotSupported):
        engine.dump_build_meta_to_proto(None, "", {})


# Looking


def test_statistics_of_a_request(engine: Engine) -> None:
    _, handle, queue = engine.start_request_ids("m", None, [1, 2, 3], TEN)
    engine.sync_request("m", handle)
    said = queue.RequestStatInfo()
    info = RequestStatInfo(said)
    assert {key.value for key in RequestStatInfo.Key} == set(said)
    assert (info.context_token_length, info.generated_token_length) == (3, 10)
    assert info.finish_time == said["finished_time"]
    assert str(info).startswith(f"RequestStatInfo(arrival_time={info.arrival_time}, ")
    with pytest.raises(KeyError):
        RequestStatInfo({})


def test_statistics_of_a_model(engine: Engine, gate: Any) -> None:
    gate.close()
    _, handle, queue = engine.start_request_ids("m", None, [1] * 40, TEN)
    gate.step()
    queue.Get()
    busy = engine.get_as_engine_stat("m")
    gate.open()
    engine.sync_request("m", handle)
    stat = engine.get_as_engine_stat("m")
    assert (busy.running_request, busy.pendding_request, busy.used_span) == (1, 0, 2)
    assert (stat.running_request, stat.used_span) == (0, 0)
    assert stat.total_span == stat.used_span + stat.free_span
    assert (stat.total_token, stat.span_size) == (stat.total_span * 32, 32)
    assert busy.free_token == (busy.total_span - 2) * 32
    assert busy.token_usage_percentage == pytest.approx(200 / busy.total_span)
    assert (stat.total_prefill_token, stat.total_generated_token) == (40, 10)
    assert busy.used_device_memory_pool_size * busy.total_span == busy.total_device_memory_pool_size * 2
    engine.sync_request("m", engine.start_request_ids("m", None, [1] * 40, TEN)[1])
    again = engine.get_as_engine_stat("m")
    assert (again.prefix_cache_hit_token, again.prefix_cache_miss_token) == (32, 48)
    assert again.prefix_cache_hit_rate == pytest.approx(0.4)
    assert again.prefix_cache_miss_rate == pytest.approx(0.6)
    assert again.dict()["total_generated_token"] == "20"
    assert set(again.dict()) == set(AsEngineStat.__struct_fields__)
    assert "total_generated_token = 20\n" in again.ToString()


def test_texts_about_an_engine(engine: Engine) -> None:
    finish(engine)
    assert "vocab_size: 500" in engine.get_model_info("m")
    assert "blocks of 32 tokens" in engine.get_model_info("m")
    assert "steps: 10" in engine.get_op_profiling_info("m")
    assert engine.get_version_full() in repr(engine)
    assert engine.get_rank_id() == 0
    assert engine.is_allspark_work_as_service() is False
    engine.close()
    engine.close()
