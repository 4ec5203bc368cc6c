"""The `rgrid` command: one module a group of commands."""
