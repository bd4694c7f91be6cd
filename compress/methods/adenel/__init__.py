"""AdeNeL grows filters where none is idle."""
