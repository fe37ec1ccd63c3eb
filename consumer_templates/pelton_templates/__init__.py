"""Consumer programs that run as they stand, on the SDK alone; `pelton new consumer` copies them."""
