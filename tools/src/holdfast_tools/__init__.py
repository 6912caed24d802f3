"""What measures Holdfast and tries it out: a simulated provider (`simulate`) and a load generator (`bench`)."""
