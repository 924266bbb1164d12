"""The U-Net's computation: precision, float8, torch.compile, memory layout, weight dtypes."""
