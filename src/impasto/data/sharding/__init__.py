"""Arrays by key in shards, on a disk or in an object store: what both caches are made of."""
