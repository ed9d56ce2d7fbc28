"""Who may ask, what may be dialled, how secrets rest: the parts that fail closed."""
