"""What Prometheus and Grafana make of the metrics."""
