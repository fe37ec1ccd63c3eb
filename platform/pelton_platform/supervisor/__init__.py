"""Keeping a platform alive on one machine: its broker, its deployer, and the files by which it is found."""
