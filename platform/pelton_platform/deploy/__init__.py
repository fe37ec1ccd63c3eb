"""Turning specs into running containers: bundles, checks, the port of a deployer, and the local one."""
