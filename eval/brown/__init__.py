"""Brown / UBC PhotoTour patches: FPR95, per-image matching, and the matching test on fixed-camera patch sets."""
