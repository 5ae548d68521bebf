"""The command line: one module a command group. The only room that prints."""
