"""The llama.cpp backend: GGUF models through llama-cpp-python's low-level functions."""
