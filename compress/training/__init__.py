"""Images, tasks and the one training loop; the lab, which is all that a method may touch; what a restart needs."""
