"""The latency predictor: fitted from published measurements, and judged on what was held out."""
