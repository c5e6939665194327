"""What Prometheus reads of an endpoint."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class EndpointMetrics:
    """The metrics of one endpoint, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named = {"registry": self.registry, "namespace": "babylon_endpoint"}
        self.waiting = Gauge("queue_length", "Calls that wait for their first token.", **named)
        self.running = Gauge("running", "Calls that are being answered.", **named)
        self.adapters = Gauge("adapters_loaded", "Adapters that may be asked for.", **named)
        self.rows = Histogram("batch_size", "Rows of a decoding step.", buckets=ROWS, **named)
        self.choices = Histogram("choices_batch_size", "Calls of a packed pass.", buckets=ROWS, **named)
        self.step = Histogram("step_seconds", "Seconds of a decoding step.", buckets=SECONDS, **named)
        self.first = Histogram("time_to_first_token_seconds", "From arrival on.", buckets=SECONDS, **named)
        self.tokens_in = Counter("tokens_in", "Tokens of the prompts that were answered.", **named)
        self.tokens_out = Counter("tokens_out", "Tokens that were drawn.", **named)
        self.calls = Counter("calls", "Calls by their end.", ["end"], **named)

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self.registry)
