"""Static cameras: the same place in another light or season."""
