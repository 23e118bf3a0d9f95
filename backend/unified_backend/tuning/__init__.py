"""The settings under which a model serves best here: what is tried, in which order, and what becomes of it."""
