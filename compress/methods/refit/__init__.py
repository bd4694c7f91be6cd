"""Refitting takes what a finished run left, its network or a smaller one on its way, to another budget."""
