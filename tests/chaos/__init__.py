"""The checker of the chaos runs finds each planted fault."""
