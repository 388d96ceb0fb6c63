"""Who evaluates which point next."""
