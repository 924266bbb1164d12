"""Plans records: buckets, resizes, crops, and how often regularisation images are shown.

Geometry and numbers; no pixels and no torch.
"""
