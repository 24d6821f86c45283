"""What only the names of the 2020 code need: its command line, its data set tokens, its files."""
