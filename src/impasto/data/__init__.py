"""Images and captions on their way to batches: records, and a package for each stage."""
