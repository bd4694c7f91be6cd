"""L1-norm pruning narrows a trained network."""
