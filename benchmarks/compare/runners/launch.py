"""Starts a runner in an interpreter that has no Millstream: `python -P launch.py RUNNER ARGUMENTS`.

The folder of this file becomes the package `runners`, without being on the module path, where its files would
hide the engines that they are named after.
"""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_PACKAGE = "runners"


def main() -> None:
    """Run the `main` of the module that the first argument names."""
    folder = Path(__file__).resolve().parent
    spec = spec_from_file_location(_PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package")
    package = module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
    name = sys.argv.pop(1)
    sys.exit(import_module(f"{_PACKAGE}.{name}").main())


if __name__ == "__main__":
    main()
