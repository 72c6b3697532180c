"""transformers' tokenizer of a model folder."""

from pathlib import Path

import pytest

from millstream.backends.bundled import PYHELP
from millstream.backends.text.auto_tokenizer import load_auto_tokenizer
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.errors import ModelFormatError


@pytest.mark.torch
def test_it_gives_the_engines_own_ids_and_texts() -> None:
    theirs = load_auto_tokenizer(PYHELP, padding_side="right")
    ours = HFTokenizer.from_folder(PYHELP)
    text = "What does os.path.join do?"
    ids = theirs.encode(text)
    assert ids == ours.encode(text)
    assert theirs.decode(ids) == ours.decode(ids) == text
    assert theirs.padding_side == "right"


@pytest.mark.torch
def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="no tokenizer"):
        load_auto_tokenizer(tmp_path)
