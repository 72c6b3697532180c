"""What a layer computes on the paged cache: the kernel interface, its reference in torch, native C++."""
