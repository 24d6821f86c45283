"""A scene drawn by ray tracing, and planes: pictures whose truth is known."""
