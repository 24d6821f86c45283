"""What the evaluations share: matching, estimation, results, pictures."""
