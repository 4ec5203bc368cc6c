"""One module a resource; each parses, calls a lower layer and answers."""
