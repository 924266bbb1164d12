"""What is watched and written down while a run trains: metrics, validation, previews, failures."""
