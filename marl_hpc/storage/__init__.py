"""What is stored, and how: packed fragments, checkpoints, the run folder. Knows no ranks."""
