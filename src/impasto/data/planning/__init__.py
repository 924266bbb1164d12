"""From records to a plan: buckets, how images are resized and cropped, and how often they come.

Geometry and numbers; no pixels and no torch.
"""
