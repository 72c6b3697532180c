"""llama.cpp's import and its log lines."""

import logging
import sys

import pytest

from millstream.backends.llamacpp import library
from millstream.errors import NotSupported


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.delitem(sys.modules, "llama_cpp.llama_cpp", raising=False)
    with pytest.raises(NotSupported, match=r"not installed: pip install llama-cpp-python gguf"):
        library._Library()


def test_a_library_that_does_not_load_says_why(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("llama_cpp"):
                raise RuntimeError("libllama.so: no such file")

    for name in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(NotSupported, match=r"does not load: libllama\.so: no such file"):
        library._Library()


def test_pieces_of_text_become_lines_at_their_level(caplog):
    caplog.set_level(logging.DEBUG, "millstream.llamacpp")
    lines = library._LogLines()
    with lines.collect() as errors:
        for level, text in [
            (2, b"loading tensors"),
            (5, b"....."),
            (5, b" done\n"),
            (4, b"cannot read\n"),
            (3, b"half a line"),
            (1, b"a detail\n"),
            (2, b"....\n"),
            (4, b"broken \xff\n"),
        ]:
            lines.write(level, text, None)
    lines.write(4, b"later\n", None)
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.INFO, "loading tensors..... done"),
        (logging.ERROR, "cannot read"),
        (logging.WARNING, "half a line"),
        (logging.DEBUG, "a detail"),
        (logging.ERROR, "broken \ufffd"),
        (logging.ERROR, "later"),
    ]
    assert errors == ["cannot read", "broken \ufffd"]
