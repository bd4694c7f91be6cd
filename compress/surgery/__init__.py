"""A live module is changed: widths, blocks and connections, until it is compact and proved to compute the same."""
