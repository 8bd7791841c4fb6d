"""The networks, as pure functions of their parameters. The only folder that imports flax."""
