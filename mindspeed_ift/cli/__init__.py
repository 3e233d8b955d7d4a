"""One file a command: parse the flags, call the package that does the work, return the exit code."""
