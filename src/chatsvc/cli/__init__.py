"""The command line: one module for each command group. The only package that prints, besides kit."""
