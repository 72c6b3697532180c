"""The machine: CPU, memory and GPU found, threads chosen, OpenMP, memory pages."""
