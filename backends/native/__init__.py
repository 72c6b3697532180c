"""Kernels in C++ for CPUs, in an extension module that is built at installation where there is a compiler."""

from .library import Missing, best_level, levels, load, set_threads

__all__ = ["Missing", "best_level", "levels", "load", "set_threads"]
