"""Homography sequences: matches, homographies and keypoints against a known mapping."""
