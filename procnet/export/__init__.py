"""How others read it: a room for later exporters."""
