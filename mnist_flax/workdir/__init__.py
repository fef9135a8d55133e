"""A run's directory: its configuration, its checkpoints, its lock, how it resumes; and a sweep's networks."""
