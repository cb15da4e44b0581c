"""Real samples for calibration and evaluation, read one by one from wherever they live."""
