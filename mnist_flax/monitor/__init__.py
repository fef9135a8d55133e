"""What can be watched while a run trains: the log, and figures and TensorBoard files by a separate process."""
