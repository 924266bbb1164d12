"""Settings of short runs on the nano model, and changes of them."""


def short_run(folder, model, pictures):
    """Return the settings of a short run below a folder, as a nested dict."""
    return {
        "output_dir": str(folder / "run"),
        "seed": 7,
        "model": {"path": str(model)},
        "dataset": {
            "image_dir": str(pictures),
            "resolution": 80,
            "min_bucket_reso": 32,
            "max_bucket_reso": 96,
            "bucket_reso_steps": 32,
            "cache_dir": str(folder / "derived"),
        },
        "optimizer": {"lr": 1e-3},
        "training": {"max_steps": 6, "batch_size": 4, "fit_check": False},  # it takes a second
        "logging": {"every_steps": 1},
        "saving": {"export_dtype": "fp32", "format": "diffusers", "name": "model"},
    }


def settings(values, /, **changes):
    """Return validated settings from a nested dict, with changes by section."""
    from impasto.config.load import build_run_config

    values = {k: (dict(v) if isinstance(v, dict) else v) for k, v in values.items()}
    for key, value in changes.items():
        if isinstance(value, dict):
            values[key] = {**values.get(key, {}), **value}
        else:
            values[key] = value
    return build_run_config(values, source="test")
