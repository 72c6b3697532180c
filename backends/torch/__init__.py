"""The torch worker: Hugging Face checkpoints on the paged KV cache, natively or through transformers."""
