"""LLM: what the engine and programs may ask of a model loader."""

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from .generation_config import ASGenerationConfigBuilder
    from .model_config import AsModelConfig


class LLM:
    """Base of all loaders; a method that a loader does not offer raises NotImplementedError."""

    def load_model(self) -> Self:
        """Find the model."""
        raise NotImplementedError("load_model")

    def init_quantization(self, enable: bool = True, customized_quant_config: Any = None) -> Self:
        """Choose a quantisation."""
        raise NotImplementedError("init_quantization")

    def init_tokenizer(self, padding_side: str = "left") -> Self:
        """Load the tokenizer."""
        raise NotImplementedError("init_tokenizer")

    def get_tokenizer(self) -> Any:
        """The tokenizer; None before `init_tokenizer`."""
        raise NotImplementedError("get_tokenizer")

    def initialised_tokenizer(self) -> Any:
        """The tokenizer that requests' texts are to be encoded with; None leaves it to the engine's own."""
        return self.init_tokenizer().get_tokenizer()

    def read_model_config(self) -> Self:
        """Read the model's configuration."""
        raise NotImplementedError("read_model_config")

    def get_model_config(self) -> Any:
        """The model's configuration."""
        raise NotImplementedError("get_model_config")

    def get_model_context_length(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        raise NotImplementedError("get_model_context_length")

    def create_reference_generation_config_builder(
        self, runtimeConfig: "AsModelConfig | None" = None
    ) -> "ASGenerationConfigBuilder":
        """A builder with what the model's author recommends."""
        raise NotImplementedError("create_reference_generation_config_builder")

    def free_model(self) -> Self:
        """Let go of what the loader holds."""
        raise NotImplementedError("free_model")

    def free_memory_serialize_file(self) -> Self:
        """Let go of what `serialize_to_memory` holds."""
        raise NotImplementedError("free_memory_serialize_file")
