"""Tables as data: rows, columns, values with intervals, and what each value was made from."""
