"""LlamaIndex's classes for servers like OpenAI's.

They need an older client of OpenAI's than the tests beside this one, so they are in an environment of their
own: `pip install llama-index-llms-openai-like llama-index-embeddings-openai-like`, and its interpreter named
by LLAMA_INDEX_PYTHON.
"""

import os
from pathlib import Path

import pytest

from .programs import findings

PYTHON = os.environ.get("LLAMA_INDEX_PYTHON")


@pytest.mark.skipif(PYTHON is None, reason="LLAMA_INDEX_PYTHON names no interpreter with LlamaIndex")
async def test_chats_texts_and_embeddings(server, answer):
    program = Path(__file__).parent / "llama_index_client" / "program.py"
    found = await findings(PYTHON, program, f"{server.url}/v1", "pyhelp")
    assert found["chat"]["text"] == found["stream"]["text"] == found["complete"]["text"] == answer
    assert found["async"]["texts"] == [answer] * 2
    assert found["continue"]["text"]
    assert found["embed"]["sizes"] == pytest.approx([1, 1], abs=1e-4)
