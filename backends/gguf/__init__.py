"""GGUF files, read with bounds before anything trusts them."""
