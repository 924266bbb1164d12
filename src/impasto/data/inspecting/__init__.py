"""What there is to know of a dataset and its images, for reports and pages."""
