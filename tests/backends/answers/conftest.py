from collections.abc import Callable

import pytest

from millstream.backends.answers import Sampler
from millstream.backends.answers.native_token_sampler import NativeTokenSampler
from millstream.backends.answers.numpy_token_sampler import NumpyTokenSampler
from millstream.backends.answers.token_sampler import TokenSampler
from millstream.backends.native import Missing, levels

MakeTokenSampler = Callable[[int], TokenSampler]


@pytest.fixture(scope="session", params=["numpy", "avx512", "avx2", "generic"])
def make_token_sampler(request: pytest.FixtureRequest) -> MakeTokenSampler:
    """From a vocabulary's size to each implementation that runs here."""
    if request.param == "numpy":
        return NumpyTokenSampler
    found = levels()
    if isinstance(found, Missing) or request.param not in found:
        pytest.skip(f"no native kernels of level {request.param} here")
    return lambda vocab_size: NativeTokenSampler(vocab_size, request.param)


@pytest.fixture(scope="session")
def sampler_of(make_token_sampler: MakeTokenSampler) -> Callable[[int, int, str], Sampler]:
    """A Sampler by vocabulary size, number of sequences and device, over each implementation."""
    return lambda vocab_size, max_num_seqs, device: Sampler(
        vocab_size, max_num_seqs, device, make_token_sampler(vocab_size)
    )
