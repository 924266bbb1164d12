"""Facts about a dataset and its images, for reports and pages."""
