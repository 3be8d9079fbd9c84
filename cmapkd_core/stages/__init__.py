"""What a container runs: `python -m cmapkd_core.stages.<stage>`, strings in, one artifact URL out."""
