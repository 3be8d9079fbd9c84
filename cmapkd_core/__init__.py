"""CMAPKD: adaptive pyramid-based distillation of CLIP models, as a library and as pipeline stages."""

__version__ = "0.1.0"
