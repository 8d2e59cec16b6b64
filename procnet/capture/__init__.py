"""How many? Packets into per-flow counts."""
