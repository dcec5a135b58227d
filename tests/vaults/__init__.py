"""What one vault implementation promises beyond the contract."""
