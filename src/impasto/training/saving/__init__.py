"""What a run keeps: training states and models, written, restored, exported."""
