"""The commands of the command line: a file a stage. They read, call and print; Python can call all they do."""
