"""Where it runs: the registry of nodes, the node protocol and the agent."""
