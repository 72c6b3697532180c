"""Prompts in ChatML without a tokenizer's template."""


class PromptTemplate:
    """Templates by name."""

    @staticmethod
    def apply_chatml_template(inputs: str) -> str:
        """One question under DashInfer's system prompt, up to the place where the answer begins.

        The blank after "assistant" is DashInfer's, so that the same question gives the same token ids.
        """
        return (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{inputs}<|im_end|>\n"
            "<|im_start|>assistant \n"
        )
