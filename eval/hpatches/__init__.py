"""HPatches: patch verification, image matching and patch retrieval."""
