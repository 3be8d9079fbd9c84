"""The distillation losses: pure functions of tensors that know no recipe, rank or device."""
