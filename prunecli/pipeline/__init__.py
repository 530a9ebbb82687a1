"""The Python API that the command line uses: each function takes plain arguments and returns facts."""
