"""Few labels: teachers that label for students, and losses of images without a label."""
