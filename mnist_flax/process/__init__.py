"""What every command needs: parsed arguments, signals, the terminal, files, and several processes as one."""
