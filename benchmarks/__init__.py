"""Measures: the engine's speed and overhead, its peers', quality, and random checkpoints to measure on."""
