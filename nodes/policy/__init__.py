"""What to buy, keep and drop: pure functions of the fleet, the queue, prices and time."""
