"""Images, losses and the one training loop; checkpoints; events; and the bench, all that a run works at."""
