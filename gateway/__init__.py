"""The doors and the wiring: HTTP, command line, settings, migrations."""
