"""What a model costs, before and after a cut, without running it."""
