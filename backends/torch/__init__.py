"""The torch worker: Hugging Face checkpoints on the paged KV cache, natively or through transformers."""

import os

# libgomp reads this when torch is first imported. By default its threads spin for milliseconds before they
# sleep, and where anything else runs on the cores, every parallel region then waits for a thread that has no
# core: on two cores beside one busy process a small model decoded 13 times slower than with this bound, which
# on idle cores costs 2 % of a 0.5B model's time per token. What the user has set is left alone.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"
