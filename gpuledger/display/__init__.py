"""Draws: values of the model become text for people, and nothing is read or asked meanwhile."""
