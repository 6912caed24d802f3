"""What the documents show works, and what is generated in them is fresh."""
