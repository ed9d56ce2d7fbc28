"""Pure decisions: no await, no I/O, no clock (time is an argument)."""
