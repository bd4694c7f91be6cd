"""L1-norm pruning narrows a trained network to its budget, and keeps the filters with the largest weights."""
