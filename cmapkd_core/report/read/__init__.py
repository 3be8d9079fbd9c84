"""What a report is made from: a run's or a suite's artifacts, and the numbers of their models."""
