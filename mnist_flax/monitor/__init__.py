"""Report a run while it trains: a log, and figures and TensorBoard files that a separate process writes."""
