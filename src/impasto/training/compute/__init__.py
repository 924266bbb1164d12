"""How the U-Net computes: precision, float8, torch.compile, order in memory, types of weights."""
