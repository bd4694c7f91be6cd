"""What leaves a run: model files, their report, and the check that needs none of our code to believe them.

Nothing is imported here: `compress.export.verify` must start in a moment, and only `compress.export.artifact` needs
torch.
"""
