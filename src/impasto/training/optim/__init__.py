"""How weights change: optimizers and their state, gradients, 16-bit weights, running averages.

Nothing here sees the settings.
"""
