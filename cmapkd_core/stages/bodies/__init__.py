"""What a stage does that has work to do, a module each; its command, one floor up, answers without importing it."""
