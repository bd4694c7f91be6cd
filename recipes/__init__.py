"""Recipes that ship with the package: YAML files, read by `compress run`."""
