"""The services of time: timers of delayed calls are fired by whoever owns their partition."""
