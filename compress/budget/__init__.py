"""What networks cost and may cost, and the widths or connections that fill a limit and never cross it. No torch."""
