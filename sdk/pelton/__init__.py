"""Run Python functions on events: the public face of Pelton."""
