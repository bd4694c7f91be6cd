"""YAML in, frozen settings out; what is wrong is told with file, line, key and what to write. No torch."""
