from collections.abc import Callable

import pytest

from millstream.backends.answers import Sampler
from millstream.backends.answers.choice import NumpyChooser
from millstream.backends.answers.chooser import Chooser
from millstream.backends.answers.native_chooser import NativeChooser
from millstream.backends.native import Missing, levels

MakeChooser = Callable[[int], Chooser]


@pytest.fixture(scope="session", params=["numpy", "avx512", "avx2", "generic"])
def make_chooser(request: pytest.FixtureRequest) -> MakeChooser:
    """From a vocabulary's size to each implementation that runs here."""
    if request.param == "numpy":
        return NumpyChooser
    found = levels()
    if isinstance(found, Missing) or request.param not in found:
        pytest.skip(f"no native kernels of level {request.param} here")
    return lambda vocab_size: NativeChooser(vocab_size, request.param)


@pytest.fixture(scope="session")
def sampler_of(make_chooser: MakeChooser) -> Callable[[int, int, str], Sampler]:
    """A Sampler by vocabulary size, number of sequences and device, over each implementation."""
    return lambda vocab_size, max_num_seqs, device: Sampler(
        vocab_size, max_num_seqs, device, make_chooser(vocab_size)
    )
