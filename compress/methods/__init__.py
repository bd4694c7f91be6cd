"""The published methods: frozen settings, with `init`, `step` and `done` over an explicit state."""
