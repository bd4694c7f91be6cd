"""AdeNeL starts with narrow layers, and widens each one whose filters are all in use, until the budget is filled."""
