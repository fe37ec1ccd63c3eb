"""The pure floor: values and decisions, with time and dice as arguments and no effect on the world."""
