"""One module per pillar of a differentially private mechanism."""
