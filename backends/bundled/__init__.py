"""The models that ship inside the package, and the facts they were taught."""

from pathlib import Path

__all__ = ["BUNDLED_MODELS", "PYHELP"]

PYHELP: Path = Path(__file__).resolve().parent / "pyhelp"
"""Folder of the bundled question-answering model about the Python standard library."""

BUNDLED_MODELS: dict[str, Path] = {
    "pyhelp": PYHELP,
    "pyhelp-bf16": PYHELP.with_name("pyhelp-bf16.gguf"),
    "pyhelp-q8_0": PYHELP.with_name("pyhelp-q8_0.gguf"),
}
"""Bundled model name -> folder in the Hugging Face layout, or GGUF file."""
