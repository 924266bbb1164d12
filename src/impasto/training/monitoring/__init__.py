"""What is measured and recorded while a run trains: metrics, validation, previews, failures."""
