"""What of rlsgd works in the trainers of others."""
