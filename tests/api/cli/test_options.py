"""Flags become configurations, one flag for each field, and nothing is lost on the way."""

from argparse import Namespace

import pytest

from millstream.api.cli.main import main
from millstream.api.cli.options import (
    add_engine_flags,
    add_sampling_flags,
    model_config,
    reads_like_a_model,
    sampling_fields,
)
from millstream.api.cli.terminal import CommandParser
from millstream.engine import ModelConfig, Policy
from millstream.errors import InvalidArgument
from millstream.scheduler import SamplingParams


def parse(*argv: str) -> Namespace:
    parser = CommandParser()
    add_sampling_flags(parser)
    add_engine_flags(parser)
    return parser.parse_args(argv)


SAMPLING = {
    "n": ("--n 3", 3),
    "temperature": ("--temperature 0.5", 0.5),
    "top_k": ("--top-k 7", 7),
    "top_p": ("--top-p 0.9", 0.9),
    "min_p": ("--min-p 0.1", 0.1),
    "repetition_penalty": ("--repetition-penalty 1.1", 1.1),
    "presence_penalty": ("--presence-penalty 0.2", 0.2),
    "frequency_penalty": ("--frequency-penalty 0.3", 0.3),
    "suppress_repetition_in_generation": ("--suppress-repetition-in-generation", True),
    "no_repeat_ngram_size": ("--no-repeat-ngram-size 3", 3),
    "seed": ("--seed 42", 42),
    "max_new_tokens": ("--max-new-tokens 9", 9),
    "max_length": ("--max-total-tokens 99", 99),
    "min_new_tokens": ("--min-new-tokens 2", 2),
    "min_length": ("--min-total-tokens 5", 5),
    "eos_token_ids": ("--eos-token-ids 1,2", (1, 2)),
    "ignore_eos": ("--ignore-eos", True),
    "stop_token_ids": ("--stop-token-ids 4", (4,)),
    "stop_words_ids": ("--stop-words-ids 4,5 --stop-words-ids 6", ((4, 5), (6,))),
    "stop": ("--stop END --stop X", ("END", "X")),
    "include_stop_in_output": ("--include-stop-in-output", True),
    "bad_words_ids": ("--bad-words-ids 7", ((7,),)),
    "logit_bias": ("--logit-bias 3=-1.5 --logit-bias 4=2", {3: -1.5, 4: 2.0}),
    "allowed_token_ids": ("--allowed-token-ids 1,2,3", (1, 2, 3)),
    "logprobs": ("--logprobs", True),
    "top_logprobs": ("--logprobs --top-logprobs 2", 2),
    "prompt_logprobs": ("--prompt-logprobs 1", 1),
    "skip_special_tokens": ("--keep-special-tokens", False),
}


def test_every_sampling_field_has_a_flag() -> None:
    assert SAMPLING.keys() == set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize("field", SAMPLING)
def test_a_sampling_flag_sets_its_field_and_no_other(field: str) -> None:
    text, value = SAMPLING[field]
    fields = sampling_fields(parse(*text.split()))
    assert fields.pop(field) == value
    assert fields in ({}, {"logprobs": True})
    assert getattr(SamplingParams(**{**fields, field: value}), field) == value


def test_without_flags_nothing_is_said_about_sampling() -> None:
    assert sampling_fields(parse()) == {}


def test_the_length_of_the_engine_and_of_the_request_are_two_flags() -> None:
    options = parse("--max-length", "100", "--max-total-tokens", "50")
    assert model_config(options, model="m").max_length == 100
    assert sampling_fields(options) == {"max_length": 50}


ENGINE = {
    "backend": ("--backend torch", "torch"),
    "device": ("--device cpu", "cpu"),
    "dtype": ("--dtype float32", "float32"),
    "quantization": ("--quantization int8", "int8"),
    "threads": ("--threads 2", 2),
    "max_length": ("--max-length 64", 64),
    "max_num_seqs": ("--max-num-seqs 3", 3),
    "max_num_batched_tokens": ("--max-num-batched-tokens 70", 70),
    "block_size": ("--block-size 32", 32),
    "num_blocks": ("--num-blocks 10", 10),
    "memory_fraction": ("--memory-fraction 0.5", 0.5),
    "batch_invariant": ("--batch-invariant", True),
    "enable_prefix_cache": ("--no-prefix-cache", False),
    "policy": ("--policy fair", Policy.FAIR),
    "revision": ("--revision v1", "v1"),
    "token": ("--token secret", "secret"),
}


@pytest.mark.parametrize("field", ENGINE)
def test_an_engine_flag_sets_its_field(field: str) -> None:
    text, value = ENGINE[field]
    config = model_config(parse(*text.split()), model="m")
    assert getattr(config, field) == value
    assert getattr(ModelConfig(model="m"), field) != value


def test_a_flag_goes_before_a_default() -> None:
    assert model_config(parse("--threads", "3"), model="m", threads=1).threads == 3


@pytest.mark.parametrize(
    "argv", [["--policy", "best"], ["--logit-bias", "3"], ["--stop-token-ids", "a"], ["--thread", "1"]]
)
def test_a_malformed_flag_ends_the_command_with_one_line(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_value_out_of_range_is_named() -> None:
    with pytest.raises(InvalidArgument, match="max_num_seqs is 0"):
        model_config(parse("--max-num-seqs", "0"), model="m")
    with pytest.raises(InvalidArgument, match="quantization is 'int3'; allowed: one of"):
        model_config(parse("--quantization", "int3"), model="m")


@pytest.mark.parametrize("argv", [["chat"], ["run"], ["doctor"]])
def test_a_model_is_named_with_or_without_a_flag(argv, capsys, tmp_path) -> None:
    nowhere = str(tmp_path / "nowhere")
    for more in ([nowhere], ["--model", nowhere], [nowhere, "--model", nowhere]):
        assert main([*argv, *more]) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert "nowhere" in told
    assert main([*argv, "one", "--model", "two"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "MODEL is 'two' and 'one'; allowed: one of them" in told


@pytest.mark.parametrize(
    "text", ["pyhelp", "./model", "/m", "~/m", "owner/name", "model.gguf", "a.gguf:Q4_K_M"]
)
def test_what_reads_like_a_model(text: str) -> None:
    assert reads_like_a_model(text)


@pytest.mark.parametrize("text", ["hello", "What is os/path?", "pyhelp?", "a gguf", ""])
def test_what_reads_like_a_prompt(text: str) -> None:
    assert not reads_like_a_model(text)


def test_the_first_word_of_generate_may_be_its_model(capsys, tmp_path) -> None:
    assert main(["generate", str(tmp_path / "nowhere"), "hello"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["generate", "pyhelp"]) == 2
    assert "PROMPT is []" in capsys.readouterr().err
    assert main(["generate", "--model", str(tmp_path / "nowhere"), "owner/name"]) == 2
    assert "nowhere" in capsys.readouterr().err
