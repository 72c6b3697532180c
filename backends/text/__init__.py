"""Text to token ids and back: tokenizers, text streams, chat templates."""
