"""What the server tells of itself: metrics, health, a dashboard."""
