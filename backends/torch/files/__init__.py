"""Checkpoints as the hub has them: safetensors, what their files say of a model."""
