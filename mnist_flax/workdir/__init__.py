"""A run's directory: what it holds, who may use it, and how a run resumes from it."""
