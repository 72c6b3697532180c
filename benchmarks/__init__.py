"""Measures: throughput, latency and overhead of the engine, and random-weight checkpoints to measure on."""
