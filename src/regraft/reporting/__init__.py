"""Many runs on one page: leaderboard, evidence, plots, galleries, HTML and Markdown."""
