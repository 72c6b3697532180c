"""`python -m millstream` and the `millstream` command."""

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from .api.cli.main import main as run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
