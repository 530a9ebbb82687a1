"""``python -m prunecli``."""

from prunecli.cli.app import main

if __name__ == "__main__":
    main()
