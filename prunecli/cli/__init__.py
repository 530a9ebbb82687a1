"""The command line: each command parses, calls the pipeline and hands the facts to `out`."""
