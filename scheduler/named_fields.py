"""NamedFields: records whose unknown fields are refused with the name that was meant."""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ..errors import InvalidArgument
from .sampling_fields import unknown_field


class NamedFields(msgspec.StructMeta):
    """Metaclass of records that users fill by keyword.

    A record may have `_other_names`, from another name of a field to its own.
    """

    _other_names: ClassVar[Mapping[str, str]] = {}

    def __call__(self, *args: Any, **fields: Any) -> Any:
        """Make a record.

        Raises:
            InvalidArgument: a field does not exist, or is given under two names.
        """
        known = self.__struct_fields__
        for name in fields.keys() - known:
            field = self._other_names.get(name)
            if field is None:
                raise unknown_field(f"field of {self.__name__}", name, known)
            if field in fields:
                raise InvalidArgument(
                    name, fields[name], f"nothing beside {field}, which it is another name of"
                )
            fields[field] = fields.pop(name)
        return super().__call__(*args, **fields)
