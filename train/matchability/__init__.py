"""Training the network that says which keypoints are worth describing."""
