"""What day and night both remember: episodes, priors, and the record of each night."""
