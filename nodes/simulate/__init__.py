"""The policy over loads and clouds that are made up: what it costs, and what the best would have cost."""
