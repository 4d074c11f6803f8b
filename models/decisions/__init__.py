"""What scores lead to."""
