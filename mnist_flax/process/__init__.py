"""What every command needs: arguments, signals, the terminal, files, several processes, the compilation cache."""
