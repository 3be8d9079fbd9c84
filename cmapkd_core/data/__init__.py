"""Pairs of pictures and captions: sources give rows, rows become shards, shards become batches."""
