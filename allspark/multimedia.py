"""MultiMediaInfo: DashInfer's container of images and sounds, which no model here takes."""

from collections.abc import Sequence
from typing import NoReturn

from ..errors import NotSupported


class MultiMediaInfo:
    """Can be made and named; a request with it is refused."""

    def set_multimedia_type(self, multimedia_type_new: int) -> NoReturn:
        """Raises NotSupported."""
        raise NotSupported(f"multimedia type {multimedia_type_new!r}: multimedia input is not supported")

    def add_multimedia_content(self, key: str, dl_tensor_list: Sequence[object]) -> NoReturn:
        """Raises NotSupported."""
        raise NotSupported(f"{len(dl_tensor_list)} tensors under {key!r}: multimedia input is not supported")
