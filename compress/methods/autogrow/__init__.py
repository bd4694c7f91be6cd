"""AutoGrow starts with few blocks, and appends more, stage by stage, until they no longer help or no longer fit."""
