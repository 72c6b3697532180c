"""transformers' own tokenizer of a model folder, for programs that expect its methods."""

from pathlib import Path
from typing import Any

from ...errors import ModelFormatError


def load_auto_tokenizer(path: Path, *, padding_side: str = "left", trust_remote_code: bool = False) -> Any:
    """AutoTokenizer of the folder `path`; nothing is downloaded.

    `trust_remote_code` lets transformers run Python files of the folder.

    Raises:
        ModelFormatError: transformers cannot make a tokenizer of what is there.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(path),
            padding_side=padding_side,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )
    except Exception as error:  # transformers raises many kinds for files it cannot read
        raise ModelFormatError(f"{path} has no tokenizer that transformers can load: {error}") from error
