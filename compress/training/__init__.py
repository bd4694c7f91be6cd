"""Images, losses and the one training loop; checkpoints; and the lab, the only thing that a method works through."""
