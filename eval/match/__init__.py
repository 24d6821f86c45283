"""Two photographs: matches, their geometry, a picture and a page."""
