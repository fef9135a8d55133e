"""Compare runs: what differs in their settings, how they score, and whether the difference is more than chance."""
