"""Model handlers: from a conversation to a model's prompt, and from its text to reasoning and content."""

from .answer_parser import AnswerParser
from .base import ModelHandler
from .llama import LlamaHandler
from .mistral import MistralHandler
from .qwen import QwenHandler
from .reasoning import AnswerDelta, ReasoningSplitter, ReasoningTags
from .registry import handler_for, register_handler

__all__ = [
    "AnswerDelta",
    "AnswerParser",
    "LlamaHandler",
    "MistralHandler",
    "ModelHandler",
    "QwenHandler",
    "ReasoningSplitter",
    "ReasoningTags",
    "handler_for",
    "register_handler",
]
