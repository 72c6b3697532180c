"""Which files a model's name means: discovery, the hub's cache, files of a folder, names of GGUF files."""
