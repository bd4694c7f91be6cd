"""Training one shape from new weights: the control of every comparison."""
