"""What the results of a sweep say: summaries, effects, tables and figures."""
