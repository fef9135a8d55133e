"""A run's directory: its configuration, its checkpoints, its lock, and how a run resumes from it."""
