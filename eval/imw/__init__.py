"""The Image Matching Workshop benchmark (2020): scenes, stereo, multiview, submissions."""
