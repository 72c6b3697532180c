"""ClientEngine: DashInfer's engine over daemons, one per NUMA node."""

from typing import NoReturn

from ..errors import NotSupported


class ClientEngine:
    """Cannot be made: one process serves all cores here."""

    def __new__(cls) -> NoReturn:
        """Raises NotSupported."""
        raise NotSupported(
            "ClientEngine: a model is not spread over NUMA nodes; allowed: Engine with compute unit CPU"
        )
