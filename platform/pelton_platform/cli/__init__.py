"""The command `pelton`: small modules, each of one or a few commands, mounted by `main`."""
