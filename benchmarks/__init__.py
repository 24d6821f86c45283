"""How fast it is: every speed bench, each against its alternative in the same run."""
