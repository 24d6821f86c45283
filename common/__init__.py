"""What train and eval share: files, images, formats, metrics, and the machine."""
