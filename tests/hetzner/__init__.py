"""The Hetzner Cloud API as a local HTTP server with a clock, a bill and faults of its own; `server.Emulator` is the way
in."""
