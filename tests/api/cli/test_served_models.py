"""What is written for each model of `serve`, and what of it is lowered or refused before anything loads."""

import json
import logging
from argparse import Namespace

import pytest

from millstream.api.cli.main import main
from millstream.api.cli.options import add_engine_flags
from millstream.api.cli.served_models import ADMISSION_FLAGS, fitted, model_configs, read_model
from millstream.api.cli.terminal import CommandParser
from millstream.benchmarks.known_shapes import SHAPES
from millstream.benchmarks.random_checkpoint import write_checkpoint
from millstream.engine import Policy
from millstream.errors import InvalidArgument


def parse(*argv: str) -> Namespace:
    parser = CommandParser()
    parser.add_argument("models", nargs="*")
    add_engine_flags(parser)
    add_engine_flags(parser, "admission", ADMISSION_FLAGS)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("pyhelp", {"model": "pyhelp", "name": ""}),
        ("a=pyhelp", {"model": "pyhelp", "name": "a"}),
        ("a=./m,max_length=9", {"model": "./m", "name": "a", "max_length": 9}),
        (
            "./m,max-length=9,policy=fair",
            {"model": "./m", "name": "", "max_length": 9, "policy": Policy.FAIR},
        ),
        ("m,enable_prefix_cache=off", {"model": "m", "name": "", "enable_prefix_cache": False}),
        ("m,queue_timeout=1.5,threads=2", {"model": "m", "name": "", "queue_timeout": 1.5, "threads": 2}),
        ("/data/a,b/model", {"model": "/data/a,b/model", "name": ""}),
        ("a=/data/a,b,threads=1", {"model": "/data/a,b", "name": "a", "threads": 1}),
    ],
)
def test_a_model_with_options(text, fields) -> None:
    assert read_model(text) == fields


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("one=", r"MODEL is 'one='; allowed: \[NAME=\]MODEL\[,OPTION=VALUE…\]"),
        ("=pyhelp", "MODEL is '=pyhelp'"),
        ("m,max_lenght=9", r"an option of m,max_lenght=9 is 'max_lenght'.*did you mean max_length\?"),
        ("m,max_length=abc", "max_length of m,max_length=abc is 'abc'; allowed: an integer"),
        ("m,memory_fraction=half", "memory_fraction of .* is 'half'; allowed: a number"),
        ("m,policy=best", "policy of m,policy=best is 'best'; allowed: fcfs, priority, fair"),
        ("m,enable_prefix_cache=no", "enable_prefix_cache of .* is 'no'; allowed: on, off"),
        ("m,threads=1,threads=2", "threads of .* is '2'; allowed: one value"),
    ],
)
def test_a_part_that_is_wrong_is_named(text, told) -> None:
    with pytest.raises(InvalidArgument, match=told):
        read_model(text)


def test_options_go_before_flags_and_flags_before_defaults() -> None:
    options = parse("a=m,max_length=64,max_queued_requests=3", "b=m", "--max-length", "32", "--threads", "2")
    a, b = model_configs(options, {"threads": 1, "max_queued_requests": 9})
    assert (a.max_length, a.threads, a.max_queued_requests) == (64, 2, 3)
    assert (b.max_length, b.threads, b.max_queued_requests) == (32, 2, 9)
    assert (a.memory_fraction, b.memory_fraction) == (0.45, 0.9)


def test_a_memory_fraction_of_its_own_is_not_shared() -> None:
    a, b = model_configs(parse("a=m,memory_fraction=0.3", "b=m"), {})
    assert (a.memory_fraction, b.memory_fraction) == (0.3, 0.9)


def test_a_value_out_of_range_names_its_model() -> None:
    with pytest.raises(InvalidArgument, match="max_length of b=m,max_length=0 is 0; allowed: 2 or more"):
        model_configs(parse("a=m", "b=m,max_length=0"), {})
    with pytest.raises(InvalidArgument, match=r"^max_length is 0"):
        model_configs(parse("a=m", "b=m", "--max-length", "0"), {})


@pytest.fixture
def short(tmp_path):
    """A checkpoint that was made for 64 tokens."""
    write_checkpoint(tmp_path / "short", SHAPES["tiny"])
    config = tmp_path / "short" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 64}))
    return str(tmp_path / "short")


def test_one_length_for_several_models_is_lowered_where_it_does_not_fit(short, caplog) -> None:
    options = parse(f"a={short}", "b=pyhelp", "--max-length", "1024")
    with caplog.at_level(logging.WARNING):
        a, b = (fitted(config, options) for config in model_configs(options, {}))
    assert (a.max_length, b.max_length) == (64, 1024)
    assert [record.getMessage() for record in caplog.records] == [
        "a was made for 64 tokens: --max-length 1024 is lowered to that for it"
    ]


def test_what_was_asked_of_one_model_is_not_lowered(short) -> None:
    for argv in ((short, "--max-length", "1024"), (f"{short},max_length=1024", "pyhelp")):
        options = parse(*argv)
        assert fitted(model_configs(options, {})[0], options).max_length == 1024


def test_a_model_that_is_refused_is_named_before_another_one_is_loaded(short, capsys) -> None:
    argv = ["serve", "pyhelp", f"b={short},max_length=1024", "--port", "0", "--log-level", "error"]
    assert main(argv) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "b: max_length is 1024; allowed: at most 64" in told
