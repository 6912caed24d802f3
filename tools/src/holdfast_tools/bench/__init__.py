"""The load generator behind `holdfast bench`: many streams whose every token is checked, and what they cost."""
