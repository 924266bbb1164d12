"""From a file, a tar or a table to pixels, masks and hashes of an image."""
