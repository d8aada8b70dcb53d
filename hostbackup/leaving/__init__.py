"""The calendar, the zone, the gates, the verdict: reads evidence, touches no server's data."""
