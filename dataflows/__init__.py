"""The flows, and the only place of waxwing that touches the world."""
