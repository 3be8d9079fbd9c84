"""One file per method, one contract (`base.Method`), one row per method in method_specs.METHODS."""
