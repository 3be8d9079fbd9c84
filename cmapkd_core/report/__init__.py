"""One run as tables, figures and a page: everything is read from the run's artifacts."""
