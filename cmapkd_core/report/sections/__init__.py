"""What stands under each heading of a report: words, figures and tables, or what is missing."""
