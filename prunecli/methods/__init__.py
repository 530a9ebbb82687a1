"""Methods: each decides which channels or weights matter. One method, one file, one line in `table`."""
