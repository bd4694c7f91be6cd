"""A module is looked at, and never changed: which channels it has, what they cost, and which of them can go."""
