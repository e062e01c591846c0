"""What a model file really holds: layouts, orders and rotations, told from its bytes."""
