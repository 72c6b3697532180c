"""The machine: CPU, memory and GPU found, OpenMP's threads, memory pages."""
