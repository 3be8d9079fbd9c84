"""Distillation of CLIP models: what people start and call. The library is cmapkd_core."""
