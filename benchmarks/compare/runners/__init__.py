"""Programs that serve one workload with one engine; they need that engine and the standard library alone.

`millstream_engine` and `llamacpp` are part of Millstream and run where it is installed. The others import
nothing of it: `launch` starts them with the interpreter of a peer's own environment.
"""
