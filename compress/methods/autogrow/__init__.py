"""AutoGrow grows blocks, stage by stage."""
