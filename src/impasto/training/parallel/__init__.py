"""Data parallel, FSDP and DeepSpeed: how several processes hold a model. Reads no settings."""
