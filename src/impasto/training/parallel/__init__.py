"""How several processes hold a model: data parallel, FSDP, DeepSpeed. Sees no settings."""
