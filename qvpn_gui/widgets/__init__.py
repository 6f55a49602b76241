"""Small widgets that know how to look, not what they mean."""
