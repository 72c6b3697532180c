"""GGUF files written from checkpoints and adapters."""
